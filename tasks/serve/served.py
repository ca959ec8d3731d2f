"""The model that is served, and what it can do."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from config import ConfigError
from config.objective_schema import WRITE_TEXT
from config.supervised_schema import SequenceToSequence
from data.prompt import Prompt, encode_prompt
from data.tokenizer import Tokenizer
from model import GPT, T5
from tasks.checkpoints import Trained, load_model
from tasks.embedding import Embedder, frame
from tasks.serve.classifier import Classifier, classifies
from tasks.serve.limits import MAX_TOKENS


@dataclass(frozen=True)
class Served:
    name: str
    """What requests call it."""
    trained: Trained
    folder: Path

    @property
    def tokenizer(self) -> Tokenizer:
        return self.trained.tokenizer

    @cached_property
    def embedder(self) -> Embedder | None:
        """None of an encoder–decoder."""
        return None if self.trained.config.family == "t5" else Embedder(self.trained)

    @cached_property
    def classifier(self) -> Classifier | None:
        """None of a model without labels."""
        return Classifier(self.trained) if classifies(self.trained) else None

    @cached_property
    def writer(self) -> GPT | T5 | None:
        """The model, if it completes text."""
        model = self.trained.model
        return model if isinstance(model, GPT | T5) and self.trained.objective.name in WRITE_TEXT else None

    @property
    def abilities(self) -> list[str]:
        chats = isinstance(self.writer, GPT) or isinstance(self.trained.objective, SequenceToSequence)
        having = {
            "embeddings": self.embedder, "classification": self.classifier, "completions": self.writer,
            "chat": self.writer and chats,
        }  # fmt: skip
        return [name for name, part in having.items() if part]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest input."""
        positions = self.trained.config.max_positions
        return min(MAX_TOKENS, positions, self.trained.max_tokens or positions)

    @property
    def vocab_size(self) -> int:
        return self.trained.config.vocab_size

    def prompt(self, given: str | list[int]) -> Prompt:
        """What a writer reads of a text; token ids are taken as they are."""
        if isinstance(given, str):
            return encode_prompt(given, self.trained.objective, self.tokenizer, frame(self.trained)[0])
        start = encode_prompt("", self.trained.objective, self.tokenizer)
        if start.source is None:
            return Prompt("", given, None, start.stop_ids)
        return Prompt("", start.tokens, given, start.stop_ids)


def load(path: Path, device: torch.device, name: str | None = None, dtype: torch.dtype = torch.float32) -> Served:
    """The model of a folder. Raises ConfigError if it cannot be loaded, or for a name that no request could spell."""
    name = name or path.resolve().name
    if not re.fullmatch(r"[\w.:/@-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits and . : / @ _ - only")
    return Served(name, load_model(path, device, dtype), path)
