"""The model that is served, and what it can do.

Letters: N texts, B texts of a batch, T length of the longest, D width.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ConfigError
from config.objective_schema import Contrastive, ObjectiveConfig
from data.prompt import encode_prompt
from data.tokenizer import Tokenizer
from engine.objective import pool
from model import GPT, T5, Bert, Layout
from model.generation import inference
from tasks.checkpoints import load_model
from tasks.serve.limits import MAX_TOKENS


@dataclass(frozen=True)
class Served:
    name: str
    """What requests call it."""
    model: GPT | Bert
    tokenizer: Tokenizer
    objective: ObjectiveConfig
    folder: Path

    @cached_property
    def writes(self) -> bool:
        """Whether it completes text."""
        return isinstance(self.model, GPT) and self.objective.name == "causal_lm"

    @property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return min(MAX_TOKENS, self.model.config.max_positions)

    @property
    def vocab_size(self) -> int:
        return self.model.config.vocab_size

    def surround(self, tokens: list[int]) -> list[int]:
        """A text's tokens with the special ones that an embedding model reads around them."""
        if isinstance(self.model, GPT):
            return tokens
        begin, separator = self.tokenizer.ids_of(["[CLS]", "[SEP]"])
        return [begin, *tokens, separator]

    def prompt(self, text: str) -> list[int]:
        """What a decoder reads of a text."""
        return encode_prompt(text, self.objective, self.tokenizer).tokens

    def embed(self, rows: list[list[int]]) -> Tensor:
        """Vectors [N, D] of length 1 in float32 on the CPU of N rows of tokens."""
        default = "last" if isinstance(self.model, GPT) else "mean"
        pooling = self.objective.pooling if isinstance(self.objective, Contrastive) else default
        device, longest = self.model.embed_tokens.weight.device, max(map(len, rows))
        tokens_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        with inference(self.model):
            hidden_BTD = self.model(tokens_BT, layout=Layout.padded(lengths_B.cpu(), longest, device))
            return F.normalize(pool(hidden_BTD.float(), lengths_B, pooling), dim=1).cpu()


def load(path: Path, device: torch.device, name: str | None = None) -> Served:
    """The model of a folder. Raises ConfigError for one that gives neither vectors nor completions."""
    model, tokenizer, config = load_model(path, device)
    if isinstance(model, T5):
        raise ConfigError(f"{path} is an encoder–decoder; serve takes models of the families gpt and bert")
    name = name or path.resolve().name
    if not re.fullmatch(r"[\w.:/@-]+", name):
        raise ConfigError(f"--name {name!r}: use letters, digits and . : / @ _ - only")
    return Served(name, model, tokenizer, config.objective, path)
