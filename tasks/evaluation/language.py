"""Perplexity and bits per byte of a causal model. Each document is predicted by itself, after an end-of-document token.

Letters: B rows, T row length, D width, N scored tokens, V vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import ConfigError
from model import GPT
from model.generation import inference
from tasks.embedding import batches
from tasks.metrics import likelihood
from tasks.pages import Curve

BATCH_TOKENS = 8192
LOGIT_TOKENS = 1024
"""Tokens whose logits exist at once."""


class Window(NamedTuple):
    """A row of the model: it reads `tokens[:-1]`, and the last `scored` of `tokens[1:]` count."""

    tokens: Sequence[int]
    scored: int


@dataclass(frozen=True)
class Scores:
    """Of the scored tokens of one window."""

    nats_N: NDArray[np.float32]
    """Minus the log probability of each."""
    greedy_N: NDArray[np.bool_]
    """Whether each was the most probable token."""


def cut(tokens: Sequence[int], length: int, stride: int) -> Iterator[Window]:
    """Windows of at most `length` inputs that predict each token but the first exactly once.

    Each begins `stride` tokens after the one before. With stride = length they are disjoint; with a smaller one they slide,
    and every token past the first window is predicted from at least `length - stride` others.
    """
    done, last = 0, len(tokens) - 1
    for begin in range(0, last, stride):
        end = min(begin + length, last)
        yield Window(tokens[begin : end + 1], end - done)
        done = end
        if end == last:
            return


def score(model: GPT, windows: Sequence[Window], device: torch.device) -> list[Scores]:
    """Scores of windows in their order; rows of similar length are computed together."""
    scores: dict[int, Scores] = {}
    with inference(model):
        for numbers in batches([len(window.tokens) - 1 for window in windows], BATCH_TOKENS):
            found = _score_batch(model, [windows[number] for number in numbers], device)
            scores |= zip(numbers, found, strict=True)
    return [scores[number] for number in range(len(windows))]


def _score_batch(model: GPT, windows: Sequence[Window], device: torch.device) -> list[Scores]:
    length = max(len(window.tokens) for window in windows) - 1
    tokens_BT = torch.zeros(len(windows), length, dtype=torch.int64)
    scored_BT = torch.zeros(len(windows), length, dtype=torch.bool)
    labels: list[int] = []
    for row, (tokens, scored) in enumerate(windows):
        tokens_BT[row, : len(tokens) - 1] = torch.as_tensor(tokens[:-1])
        scored_BT[row, len(tokens) - 1 - scored : len(tokens) - 1] = True
        labels += tokens[len(tokens) - scored :]
    hidden_BTD = model(tokens_BT.to(device))
    assert isinstance(hidden_BTD, Tensor)
    hidden_ND, labels_N = hidden_BTD[scored_BT.to(device)], torch.tensor(labels, device=device)
    nats, greedy = [], []
    for hidden_CD, labels_C in zip(hidden_ND.split(LOGIT_TOKENS), labels_N.split(LOGIT_TOKENS), strict=True):
        log_probs_CV = torch.log_softmax(model.logits(hidden_CD).float(), dim=-1)
        nats.append(-log_probs_CV.gather(1, labels_C[:, None]).squeeze(1))
        greedy.append(log_probs_CV.argmax(1) == labels_C)
    bounds = np.cumsum([window.scored for window in windows])[:-1]
    nats_N, greedy_N = torch.cat(nats).cpu().numpy(), torch.cat(greedy).cpu().numpy()
    return [Scores(*both) for both in zip(np.split(nats_N, bounds), np.split(greedy_N, bounds), strict=True)]


def check_window(window: int, stride: int, longest: int, least: int = 1) -> None:
    """Raises ConfigError unless least <= window <= longest and 1 <= stride <= window."""
    if not least <= window <= longest:
        raise ConfigError(f"--window {window:,} is not from {least} to the model's {longest:,} positions")
    if not 1 <= stride <= window:
        raise ConfigError(
            f"--stride {stride:,} is not from 1 to --window {window:,}: beyond it, tokens would be left out"
        )


def perplexity(
    model: GPT,
    documents: Iterable[tuple[Sequence[int], int]],
    *,
    end_id: int,
    window: int,
    stride: int,
    device: torch.device,
) -> tuple[dict[str, float], Curve]:
    """Likelihood of documents, each its tokens and the UTF-8 bytes of its text, and the loss by length of context.

    The tokens of a document are predicted, its end is not. Raises DataError if there is no token.
    """
    total = text_bytes = 0
    nats = 0.0
    sums, counts = (np.zeros(math.ceil(math.log2(window)) + 1) for _ in range(2))
    for group in _grouped(documents):
        windows = [part for tokens, _ in group for part in cut([end_id, *tokens], window, stride)]
        for (tokens, scored), found in zip(windows, score(model, windows, device), strict=True):
            nats += float(found.nats_N.sum(dtype=np.float64))
            total += scored
            context_N = np.arange(len(tokens) - scored, len(tokens))
            place_N = np.ceil(np.log2(context_N)).astype(int)
            sums += np.bincount(place_N, found.nats_N, len(sums))
            counts += np.bincount(place_N, minlength=len(sums))
        text_bytes += sum(size for _, size in group)
    points = [(float(min(2**place, window)), float(sums[place] / counts[place])) for place in np.flatnonzero(counts)]
    curve = Curve("Loss by context", "tokens of context, up to", "nats a token", {"loss": points})
    return likelihood(nats, total, text_bytes), curve


def _grouped(documents: Iterable[tuple[Sequence[int], int]]) -> Iterator[list[tuple[Sequence[int], int]]]:
    """Documents in groups large enough to find rows of similar length in them."""
    group: list[tuple[Sequence[int], int]] = []
    held = 0
    for document in documents:
        group.append(document)
        held += len(document[0])
        if held >= 16 * BATCH_TOKENS:
            yield group
            group, held = [], 0
    if group:
        yield group
