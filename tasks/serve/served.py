"""The model that is served, and what it can do."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from config import ConfigError
from config.objective_schema import CausalLM
from data.prompt import encode_prompt
from data.tokenizer import Tokenizer
from model import GPT, Bert
from tasks.checkpoints import Trained, check_family, load_model
from tasks.embedding import Embedder
from tasks.serve.limits import MAX_TOKENS


@dataclass(frozen=True)
class Served:
    name: str
    """What requests call it."""
    trained: Trained
    folder: Path
    embedder: Embedder = field(init=False)

    def __post_init__(self) -> None:
        check_family(self.trained, "serve", ("bert", "gpt"))
        object.__setattr__(self, "embedder", Embedder(self.trained))

    @property
    def model(self) -> GPT | Bert:
        assert isinstance(self.trained.model, GPT | Bert)
        return self.trained.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.trained.tokenizer

    @cached_property
    def writes(self) -> bool:
        """Whether it completes text."""
        return isinstance(self.model, GPT) and isinstance(self.trained.objective, CausalLM)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return min(MAX_TOKENS, self.embedder.max_tokens)

    @property
    def vocab_size(self) -> int:
        return self.trained.config.vocab_size

    def prompt(self, text: str) -> list[int]:
        """What a decoder reads of a text."""
        return encode_prompt(text, self.trained.objective, self.tokenizer).tokens


def load(path: Path, device: torch.device, name: str | None = None) -> Served:
    """The model of a folder. Raises ConfigError for one that gives neither vectors nor completions."""
    name = name or path.resolve().name
    if not re.fullmatch(r"[\w.:/@-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits and . : / @ _ - only")
    return Served(name, load_model(path, device), path)
