"""Beam search: the continuations with the highest probability that a breadth-first search finds.

Letters: R running texts, K beams of a text, V vocabulary, C candidates.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from config import ConfigError
from model.generation import inference
from model.gpt import GPT
from model.rows import CachedRows
from model.t5 import T5

UNUSED = -1e9
"""Score of a beam that holds nothing yet."""


@dataclass
class _Text:
    """The search for one text: its beams, best first, and the best finished continuations."""

    number: int
    scores: list[float]
    beams: list[list[int]]
    finished: list[tuple[float, list[int]]] = field(default_factory=list)


def beam_search(
    model: GPT | T5,
    prompts: Sequence[Sequence[int]],
    *,
    sources: Sequence[Sequence[int]] = (),
    num_beams: int,
    max_new_tokens: int,
    stop_ids: Collection[int],
    length_penalty: float = 1.0,
) -> list[tuple[list[int], float]]:
    """The best continuation of each prompt, without its stop token, and its score.

    The score is the sum of log-probabilities, divided by (tokens, stop token included)^length_penalty (Wu et al. 2016,
    arXiv:1609.08144, with the plain length). A text is done when it has as many finished continuations as beams and its
    best beam, scored at its length, is no better than the worst of them: transformers' `early_stopping=False`.
    Raises ConfigError if prompt and new tokens do not fit in max_positions.
    """
    _check_lengths(model, prompts, sources, max_new_tokens)
    best: list[tuple[list[int], float]] = [([], 0.0)] * len(prompts)
    texts = [_Text(n, [0.0] + [UNUSED] * (num_beams - 1), [[]] * num_beams) for n in range(len(prompts))]
    with inference(model):
        rows = CachedRows(model)
        logits_BV = rows.read(prompts, sources).repeat_interleave(num_beams, dim=0)
        rows.select([row for row in range(len(prompts)) for _ in range(num_beams)])
        for length in range(1, max_new_tokens + 1):
            last = length == max_new_tokens
            parents, tokens = _extend(texts, logits_BV, num_beams, length, last, stop_ids, length_penalty)
            going = [] if last else [n for n, text in enumerate(texts) if not _is_done(text, length, length_penalty)]
            for place in set(range(len(texts))) - set(going):
                score, chosen = max(texts[place].finished, key=lambda entry: entry[0])
                best[texts[place].number] = chosen, score
            if not going:
                break
            kept = [place * num_beams + beam for place in going for beam in range(num_beams)]
            if len(going) < len(texts):
                rows.select([parents[row] for row in kept])
            else:
                rows.reorder(parents)
            texts = [texts[place] for place in going]
            logits_BV = rows.advance(torch.tensor([tokens[row] for row in kept], device=logits_BV.device))
    return best


def _extend(
    texts: list[_Text], logits_BV: Tensor, num_beams: int, length: int, last: bool, stop_ids: Collection[int],
    length_penalty: float,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Give each text its best beams of `length` tokens; each beam's row of the cache and its newest token.

    Of the best candidates those that stop are finished if they are among the first `num_beams`, the others go on;
    enough are looked at for all beams to go on. After the `last` token every candidate has stopped.
    """
    scores_RK = torch.tensor([text.scores for text in texts], device=logits_BV.device)
    log_probs_RKV = logits_BV.float().log_softmax(-1).unflatten(0, (-1, num_beams)) + scores_RK.unsqueeze(2)
    best = log_probs_RKV.flatten(1).topk(max(2, 1 + len(stop_ids)) * num_beams)
    parents, tokens, vocabulary = [], [], logits_BV.shape[-1]
    for place, (text, scores, picks) in enumerate(zip(texts, best.values.tolist(), best.indices.tolist(), strict=True)):
        running: list[tuple[float, int, int]] = []
        for rank, (score, pick) in enumerate(zip(scores, picks, strict=True)):
            beam, token = divmod(pick, vocabulary)
            if not last and token not in stop_ids:
                running.append((score, beam, token))
            elif rank < num_beams:
                ending = [] if token in stop_ids else [token]
                text.finished.append((score / length**length_penalty, text.beams[beam] + ending))
        text.finished = sorted(text.finished, key=lambda entry: -entry[0])[:num_beams]
        if not last:
            text.scores = [score for score, _, _ in running[:num_beams]]
            text.beams = [text.beams[beam] + [token] for _, beam, token in running[:num_beams]]
            parents += [place * num_beams + beam for _, beam, _ in running[:num_beams]]
            tokens += [token for _, _, token in running[:num_beams]]
    return parents, tokens


def _is_done(text: _Text, length: int, length_penalty: float) -> bool:
    return len(text.finished) == len(text.beams) and text.scores[0] / length**length_penalty <= text.finished[-1][0]


def _check_lengths(
    model: GPT | T5, prompts: Sequence[Sequence[int]], sources: Sequence[Sequence[int]], max_new_tokens: int
) -> None:
    needed, source = max(map(len, prompts)) + max_new_tokens - 1, max(map(len, sources), default=0)
    if max(needed, source) > model.config.max_positions:
        raise ConfigError(
            f"prompt and new tokens need {needed} positions and the source {source}, but max_positions is "
            f"{model.config.max_positions}: shorten the text, or lower max_new_tokens"
        )
