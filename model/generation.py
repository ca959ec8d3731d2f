"""Continue prompts to their ends; fill in masks.

Letters: B prompts, T prompt length, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from config import ConfigError
from model.bert import Bert
from model.decoder import Decoder, Reason, Request
from model.gpt import GPT
from model.sampling import Sampling, sequence_key
from model.t5 import T5


@dataclass(frozen=True)
class Generation:
    """What `generate` returns, one entry for each prompt."""

    new_tokens: list[list[int]]
    """Tokens after the prompt, without the stop token."""
    reasons: list[Reason]


def generate(
    model: GPT | T5,
    prompts: Sequence[Sequence[int]] | Tensor,
    *,
    sources: Sequence[Sequence[int]] | Tensor | None = None,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    seed: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Generation:
    """Continue prompts of any lengths, each as if it were alone. An encoder–decoder reads `sources` and writes after the
    prompts, which are then its start tokens.

    `sampling` are settings of `Sampling`; under a `seed` every prompt has draws of its own.
    `on_token(row, token)` is called as soon as a token is known.

    The context does not slide: the model has never seen a position past max_positions, and dropping the oldest tokens
    would change the meaning of all cached ones. A continuation that reaches it ends with the reason "context".

    Raises ConfigError for impossible sampling settings and for prompts or sources longer than max_positions.
    """
    settings = Sampling(**sampling)
    decoder, rows = Decoder(model), _lists(prompts)
    given = [None] * len(rows) if sources is None else _lists(sources)
    new_tokens: list[list[int]] = [[] for _ in rows]
    reasons: list[Reason] = ["length"] * len(rows)
    for row, (prompt, source) in enumerate(zip(rows, given, strict=True)):
        own = replace(settings, seed=None if seed is None else sequence_key(seed, row))
        decoder.add(Request(prompt, source, max_new_tokens, stop_ids, own))
    with inference(model):
        while len(decoder):
            for new in decoder.step():
                if new.reason:
                    reasons[new.sequence] = new.reason
                if new.reason != "stop":
                    new_tokens[new.sequence].append(new.token)
                    if on_token:
                        on_token(new.sequence, new.token)
    return Generation(new_tokens, reasons)


def likely_tokens(model: Bert, tokens_BT: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids [B, T, count] of the most probable tokens at each place of rows with masks.

    Raises ConfigError for rows longer than max_positions.
    """
    length, longest = tokens_BT.shape[1], model.config.max_positions
    if length > longest:
        raise ConfigError(f"the prompt has {length} tokens, more than the model's max_positions {longest}: shorten it")
    with inference(model):
        return model.logits(model(tokens_BT)).float().softmax(-1).topk(count)


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No gradients, no dropout, and no compiled blocks, which would be compiled again for each length."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.train(was_training)


def _lists(rows: Sequence[Sequence[int]] | Tensor) -> list[list[int]]:
    return rows.tolist() if isinstance(rows, Tensor) else [list(row) for row in rows]
