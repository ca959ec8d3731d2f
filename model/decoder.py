"""Sequences that are continued together and come and go between steps (continuous batching: Yu et al. 2022, Orca).

Letters: B rows, V vocabulary.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from config import ConfigError
from model.gpt import GPT
from model.rows import CachedRows
from model.sampling import Sampler, Sampling, sequence_key, uniform
from model.t5 import T5

Reason = Literal["stop", "length", "context"]
"""Why a continuation ended: a stop token, max_new_tokens, or the model's max_positions."""

PROMPT_TOKENS = 4096
"""Most tokens, padding included, of the prompts that one step reads (at least one prompt)."""


@dataclass(frozen=True)
class Request:
    """A prompt and how it is continued."""

    prompt: Sequence[int]
    """At least one token; for an encoder–decoder what its decoder starts from."""
    source: Sequence[int] | None = None
    """What an encoder–decoder reads."""
    max_new_tokens: int = 16
    stop_ids: Collection[int] = ()
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    """Continuations; under a seed each has draws of its own."""
    likeliest: int | None = None
    """Log-probabilities of the tokens chosen and of this many likeliest ones; None: none at all."""


@dataclass(frozen=True)
class NewToken:
    """What a step gave one sequence."""

    sequence: int
    token: int
    reason: Reason | None
    """Why it was the sequence's last; after "stop" the token is the stop token, which is no part of the text."""
    logprob: float | None = None
    """Log of the token's probability in the model's own distribution, before temperature and cuts."""
    likeliest: Sequence[tuple[int, float]] = ()
    """The likeliest tokens and their log-probabilities, best first."""


@dataclass
class _Sequence:
    number: int
    request: Request
    key: int
    length: int
    """Tokens of the text and of those already chosen for it."""


class Decoder:
    """Continues any number of sequences by one token a step. Each gets the tokens it would get alone.

    The model is in evaluation mode. Not for several threads at once.
    """

    def __init__(self, model: GPT | T5, prompt_tokens: int = PROMPT_TOKENS):
        self.model, self.prompt_tokens = model, prompt_tokens
        self.longest = model.config.max_positions
        self.rows = CachedRows(model)
        self.sequences: list[_Sequence] = []
        self.waiting: deque[tuple[Request, list[int]]] = deque()
        self._added = 0
        self._counts_B = np.zeros(0, np.uint64)
        self._chosen_B: Tensor | None = None
        self._seen_BV: Tensor | None = None
        self._describe()

    def __len__(self) -> int:
        """Sequences that are not finished."""
        return len(self.sequences) + sum(len(numbers) for _, numbers in self.waiting)

    def add(self, request: Request) -> list[int]:
        """Numbers of the new sequences, one a sample; the next step reads the prompt and gives their first tokens.

        Raises ConfigError for a prompt or a source that is empty or longer than max_positions.
        """
        self._check_length("prompt", request.prompt)
        if isinstance(self.model, T5):
            assert request.source is not None, "an encoder–decoder needs a source"
            self._check_length("source", request.source)
        if request.max_new_tokens < 1 or request.samples < 1:
            raise ConfigError(
                f"max_new_tokens {request.max_new_tokens} and samples {request.samples}: both have to be at least 1"
            )
        numbers = list(range(self._added, self._added + request.samples))
        self._added += request.samples
        self.waiting.append((request, numbers.copy()))
        return numbers

    def remove(self, number: int) -> None:
        """Forget a sequence, finished or not."""
        for row, sequence in enumerate(self.sequences):
            if sequence.number == number:
                self._drop([row])
                return
        for _, numbers in self.waiting:
            if number in numbers:
                numbers.remove(number)
        self.waiting = deque(entry for entry in self.waiting if entry[1])

    @torch.no_grad()
    def step(self) -> list[NewToken]:
        """One token for each sequence, those added since the last step included; finished ones leave."""
        logits = [self.rows.advance(self._chosen_B)] if self._chosen_B is not None else []
        if self.waiting:
            logits.append(self._read_prompts())
        if not logits:
            return []
        logits_BV = torch.cat(logits) if len(logits) > 1 else logits[0]
        drawn_B = uniform(self._keys_B, self._counts_B)
        self._counts_B += np.uint64(1)
        self._chosen_B = self.sampler.choose(logits_BV, drawn_B, self._seen_BV)
        if self._seen_BV is not None:
            self._seen_BV[torch.arange(len(self._chosen_B)), self._chosen_B] = True
        tokens = [
            NewToken(sequence.number, token, self._advance(sequence, token), *details)
            for sequence, token, details in zip(
                self.sequences, self._chosen_B.tolist(), self._log_probabilities(logits_BV), strict=True
            )
        ]
        self._drop([row for row, token in enumerate(tokens) if token.reason])
        return tokens

    def _read_prompts(self) -> Tensor:
        """Take in waiting requests, at least one, equal prompts once; logits [B, V] of their samples' first tokens."""
        taken: list[tuple[Request, list[int]]] = []
        texts: dict[tuple, int] = {}
        copies: list[int] = []
        longest = 0
        while self.waiting:
            request, numbers = self.waiting[0]
            text = tuple(request.prompt), tuple(request.source or ())
            longest = max(longest, *map(len, text))
            if taken and longest * len(texts.keys() | {text}) > self.prompt_tokens:
                break
            taken.append(self.waiting.popleft())
            copies += [texts.setdefault(text, len(texts))] * len(numbers)
        new = CachedRows(self.model)
        logits_BV = new.read([prompt for prompt, _ in texts], [source for _, source in texts if source])
        if len(copies) > len(texts):
            new.select(copies)
            logits_BV = logits_BV[copies]
        self.rows.join(new)
        for request, numbers in taken:
            for sample, number in enumerate(numbers):
                key = sequence_key(request.sampling.seed, sample)
                self.sequences.append(_Sequence(number, request, key, len(request.prompt)))
        self._mark_seen(len(copies))
        self._describe()
        return logits_BV

    def _mark_seen(self, new: int) -> None:
        """Mark the prompts' tokens of the last `new` sequences, if any sequence has a repetition penalty."""
        penalised = any(sequence.request.sampling.repetition_penalty != 1 for sequence in self.sequences)
        if self._seen_BV is None and not penalised:
            return
        blank_BV = torch.zeros(new, self.model.config.vocab_size, dtype=torch.bool, device=self.rows.device)
        old_BV = blank_BV.new_zeros(len(self.sequences) - new, blank_BV.shape[1])
        for row, sequence in enumerate(self.sequences[-new:]):
            blank_BV[row, list(sequence.request.prompt)] = True
        self._seen_BV = torch.cat([old_BV if self._seen_BV is None else self._seen_BV, blank_BV])

    def _advance(self, sequence: _Sequence, token: int) -> Reason | None:
        """Count the token; why it is the last one, if it is."""
        request = sequence.request
        sequence.length += 1
        if token in request.stop_ids:
            return "stop"
        if sequence.length - len(request.prompt) == request.max_new_tokens:
            return "length"
        # The last token needs no position: nothing is computed from it.
        return "context" if sequence.length > self.longest else None

    def _log_probabilities(self, logits_BV: Tensor) -> list[tuple]:
        """(log-probability, likeliest tokens) of the rows that ask for them, () for the others."""
        asked = [sequence.request.likeliest for sequence in self.sequences]
        rows = [row for row, count in enumerate(asked) if count is not None]
        details: list[tuple] = [()] * len(asked)
        if rows:
            assert self._chosen_B is not None
            log_probs_RV = logits_BV[rows].float().log_softmax(-1)
            chosen_R = log_probs_RV.gather(1, self._chosen_B[rows].unsqueeze(1)).squeeze(1).tolist()
            best = log_probs_RV.topk(min(max(asked[row] or 0 for row in rows), logits_BV.shape[-1]))
            for i, (row, ids, values) in enumerate(zip(rows, best.indices.tolist(), best.values.tolist(), strict=True)):
                details[row] = (chosen_R[i], list(zip(ids, values, strict=True))[: asked[row]])
        return details

    def _drop(self, rows: list[int]) -> None:
        """Remove rows; each time the last one takes the place that is free."""
        if not rows:
            return
        order = list(range(len(self.sequences)))
        for row in reversed(rows):
            self.rows.drop(row)
            order[row] = order[-1]
            order.pop()
        self.sequences = [self.sequences[row] for row in order]
        self._counts_B = self._counts_B[order]
        self._chosen_B = self._chosen_B[order] if order and self._chosen_B is not None else None
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[order] if order else None
        self._describe()

    def _describe(self) -> None:
        """What stays as long as the rows do."""
        new = len(self.sequences) - len(self._counts_B)
        self._counts_B = np.concatenate([self._counts_B, np.zeros(new, np.uint64)])
        self._keys_B = np.array([sequence.key for sequence in self.sequences], np.uint64)
        self.sampler = Sampler([sequence.request.sampling for sequence in self.sequences], self.rows.device)

    def _check_length(self, what: str, tokens: Sequence[int]) -> None:
        if not len(tokens):
            raise ConfigError(f"the {what} is empty: start from the end-of-text token")
        if len(tokens) > self.longest:
            raise ConfigError(
                f"the {what} has {len(tokens)} tokens, more than the model's max_positions {self.longest}: shorten it"
            )
