"""Continue prompts token by token, with cached keys and values; fill in masks.

Letters: B prompts, T prompt length, S source length, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from config import ConfigError
from model.bert import Bert
from model.cache import KVCache
from model.gpt import GPT
from model.layout import Layout
from model.t5 import T5

Reason = Literal["stop", "length", "context"]
"""Why a continuation ended: a stop token, max_new_tokens, or the model's max_positions."""


@dataclass(frozen=True)
class Generation:
    """What `generate` returns, one entry for each prompt."""

    new_tokens: list[list[int]]
    """Tokens after the prompt, without the stop token."""
    reasons: list[Reason]


def generate(
    model: GPT | T5,
    tokens_BT: Tensor,
    *,
    source_BS: Tensor | None = None,
    source_layout: Layout | None = None,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Collection[int] = (),
    seed: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> Generation:
    """Continue B prompts of one length T >= 1. An encoder–decoder reads `source_BS`, which `source_layout` describes if it
    is padded, and writes after the prompt, which is then its start token.

    Temperature 0 takes the most probable token; else tokens are drawn from softmax(logits / temperature), limited to
    the `top_k` best and to the smallest set whose probability reaches `top_p` (Holtzman et al. 2020, arXiv:1904.09751).
    `on_token(row, token)` is called as soon as a token is known. A `seed` makes the draw repeatable on one device type.

    The context does not slide: the model has never seen a position past max_positions, and dropping the oldest tokens
    would change the meaning of all cached ones. A continuation that reaches it ends with the reason "context".

    Raises ConfigError for impossible sampling settings and for prompts or sources longer than max_positions.
    """
    length, longest = tokens_BT.shape[1], model.config.max_positions
    _check_sampling(temperature, top_k, top_p)
    _check_length("prompt", length, longest)
    steps = min(max_new_tokens, longest - length + 1)
    generator = None if seed is None else torch.Generator(tokens_BT.device).manual_seed(seed)
    decoder: Callable[..., Tensor] = model
    if isinstance(model, T5):
        assert source_BS is not None, "an encoder–decoder needs a source"
        _check_length("source", source_BS.shape[1], longest)
        decoder = partial(model, source_BS, source_layout=source_layout)
        cache = KVCache(model.config.decoder_layers, length + steps, source_BS.shape[1])
    else:
        cache = KVCache(model.config.num_layers, length + steps)
    new_tokens: list[list[int]] = [[] for _ in tokens_BT]
    stopped: set[int] = set()
    with inference(model):
        for _ in range(steps):
            hidden_BTD = decoder(tokens_BT, cache=cache)
            logits_BV = model.logits(hidden_BTD[:, -1:]).squeeze(1)
            tokens_BT = next_tokens(logits_BV, temperature, top_k, top_p, generator).unsqueeze(1)
            for row, token in enumerate(tokens_BT.squeeze(1).tolist()):
                if token in stop_ids:
                    stopped.add(row)
                if row not in stopped:
                    new_tokens[row].append(token)
                    if on_token:
                        on_token(row, token)
            if len(stopped) == len(new_tokens):
                break
    limit: Reason = "length" if steps == max_new_tokens else "context"
    return Generation(new_tokens, ["stop" if row in stopped else limit for row in range(len(new_tokens))])


def likely_tokens(model: Bert, tokens_BT: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Probabilities and ids [B, T, count] of the most probable tokens at each place of rows with masks.

    Raises ConfigError for rows longer than max_positions.
    """
    _check_length("prompt", tokens_BT.shape[1], model.config.max_positions)
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


def next_tokens(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """One token [B] for each row of logits."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    kept_BV = keep_likely(logits_BV.float() / temperature, top_k, top_p)
    return torch.multinomial(kept_BV.softmax(-1), 1, generator=generator).squeeze(1)


def keep_likely(logits_BV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits with -inf outside the `top_k` best and outside the smallest set of probability `top_p`."""
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
    if top_p is not None:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        probabilities_BV = sorted_BV.softmax(-1)
        more_likely_BV = probabilities_BV.cumsum(-1) - probabilities_BV
        sorted_BV = sorted_BV.masked_fill(more_likely_BV >= top_p, -torch.inf)
        logits_BV = torch.empty_like(logits_BV).scatter_(1, order_BV, sorted_BV)
    return logits_BV


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if temperature < 0:
        raise ConfigError(f"temperature {temperature:g} is negative: use 0 for the most probable token, or more")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k {top_k} keeps no token: use at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p:g} is not a probability above 0 and up to 1")


def _check_length(what: str, length: int, longest: int) -> None:
    if not length:
        raise ConfigError(f"the {what} is empty: start from the end-of-text token")
    if length > longest:
        raise ConfigError(f"the {what} has {length} tokens, more than the model's max_positions {longest}: shorten it")
