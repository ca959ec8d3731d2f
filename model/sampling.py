"""Which token comes next: settings of each row, the tokens they leave, and draws that do not depend on other rows.

Letters: B rows, V vocabulary, C likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config import ConfigError

LIKELIEST = 256
"""Tokens that are sorted first; the whole vocabulary only if they do not hold the probability asked for."""
COLDEST = 1e-5
"""Below this temperature the likeliest token is taken: logits divided by less may pass what float32 holds."""
GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one sequence are chosen. Raises ConfigError for impossible settings.

    The order is transformers': repetition penalty, temperature, top_k, top_p, min_p.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens."""
    top_p: float | None = None
    """Draw from the smallest set of tokens with this probability (Holtzman et al. 2020, arXiv:1904.09751)."""
    min_p: float | None = None
    """Draw from tokens that are at least this share as probable as the likeliest (arXiv:2407.01082)."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that the prompt or the text has (arXiv:1909.05858)."""
    seed: int | None = None
    """Makes the draws repeatable, whatever other sequences are drawn at the same time."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ConfigError(f"temperature {self.temperature:g} is not 0, for the likeliest token, or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k {self.top_k} keeps no token: use at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p:g} is not a probability above 0 and up to 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p {self.min_p:g} is not a share from 0 to 1")
        if not self.repetition_penalty > 0:
            raise ConfigError(
                f"repetition_penalty {self.repetition_penalty:g} is not above 0: use 1 for none, 1.1 for a light one"
            )


class Sampler:
    """The settings of B rows, each as a column [B, 1], or None where no row needs it."""

    def __init__(self, rows: Sequence[Sampling], device: torch.device | str = "cpu"):
        def column(values: list[float], nothing: float) -> Tensor | None:
            if all(value == nothing for value in values):
                return None
            return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

        greedy = [row.temperature < COLDEST for row in rows]
        self.all_greedy, self.any_greedy = all(greedy), any(greedy)
        self.greedy_B = torch.tensor(greedy, device=device)
        self.temperature_B1 = column(
            [1.0 if cold else row.temperature for row, cold in zip(rows, greedy, strict=True)], 1.0
        )
        self.top_k_B1 = column([row.top_k or torch.inf for row in rows], torch.inf)
        # Rounding must not cut the tail of a row that asks for all of it.
        self.top_p_B1 = column([2.0 if row.top_p in (None, 1.0) else row.top_p for row in rows], 2.0)
        self.min_p_B1 = column([row.min_p or 0.0 for row in rows], 0.0)
        self.penalty_B1 = column([row.repetition_penalty for row in rows], 1.0)

    def choose(self, logits_BV: Tensor, uniform_B: NDArray[np.float64], seen_BV: Tensor | None = None) -> Tensor:
        """One token [B] a row. `uniform_B` are the rows' draws from [0, 1), `seen_BV` marks their tokens so far."""
        logits_BV = logits_BV.float()
        if self.penalty_B1 is not None:
            assert seen_BV is not None
            penalised_BV = torch.where(logits_BV < 0, logits_BV * self.penalty_B1, logits_BV / self.penalty_B1)
            logits_BV = torch.where(seen_BV, penalised_BV, logits_BV)
        if self.all_greedy:
            return logits_BV.argmax(-1)
        if self.temperature_B1 is not None:
            logits_BV = logits_BV / self.temperature_B1
        kept_BV = self.keep(logits_BV)
        cumulated_BV = kept_BV.softmax(-1).cumsum(-1, dtype=torch.float64)
        place_B1 = torch.from_numpy(uniform_B).to(kept_BV.device).unsqueeze(1) * cumulated_BV[:, -1:]
        drawn_B = torch.searchsorted(cumulated_BV, place_B1, right=True).squeeze(1)
        return torch.where(self.greedy_B, logits_BV.argmax(-1), drawn_B) if self.any_greedy else drawn_B

    def keep(self, logits_BV: Tensor) -> Tensor:
        """Logits with -inf outside of what top_k, top_p and min_p leave; equal logits stay or go together."""
        if self.top_k_B1 is not None or self.top_p_B1 is not None:
            logits_BV = logits_BV.masked_fill(logits_BV < self._least_kept(logits_BV), -torch.inf)
        if self.min_p_B1 is not None:
            logits_BV = logits_BV.masked_fill(
                logits_BV < logits_BV.amax(-1, keepdim=True) + self.min_p_B1.log(), -torch.inf
            )
        return logits_BV

    def _least_kept(self, logits_BV: Tensor) -> Tensor:
        """The smallest logit [B, 1] that top_k and top_p leave."""
        top_k_B1 = logits_BV.new_tensor(torch.inf) if self.top_k_B1 is None else self.top_k_B1
        top_p_B1 = logits_BV.new_tensor(2.0) if self.top_p_B1 is None else self.top_p_B1
        everything_B1 = (top_k_B1 == torch.inf) & (top_p_B1 == 2.0)
        whole_B1, vocabulary = logits_BV.logsumexp(-1, keepdim=True), logits_BV.shape[-1]
        for count in (min(LIKELIEST, vocabulary), vocabulary):
            likeliest_BC = logits_BV.topk(count).values
            within_BC = torch.arange(count, device=logits_BV.device) < top_k_B1
            likeliest_BC = likeliest_BC.masked_fill(~within_BC, -torch.inf)
            total_B1 = likeliest_BC.logsumexp(-1, keepdim=True).where(top_k_B1 <= count, whole_B1)
            share_BC = (likeliest_BC - total_B1).exp()
            cumulated_BC = share_BC.cumsum(-1)
            if ((top_k_B1 <= count) | (cumulated_BC[:, -1:] >= top_p_B1) | everything_B1).all():
                break
        # The likeliest stays, even if top_p is nothing in float32.
        kept_B1 = (within_BC & (cumulated_BC - share_BC < top_p_B1)).sum(-1, keepdim=True).clamp(min=1)
        return likeliest_BC.gather(1, kept_B1 - 1).masked_fill(everything_B1, -torch.inf)


def uniform(keys_B: NDArray[np.uint64], counts_B: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Draw number `counts_B` of each key, from [0, 1): SplitMix64 (Steele et al. 2014), so no state has to be kept."""
    with np.errstate(over="ignore"):
        bits_B = _mix(keys_B + (counts_B + np.uint64(1)) * np.uint64(GOLDEN))
    return (bits_B >> np.uint64(11)) * 2.0**-53


def sequence_key(seed: int | None, number: int) -> int:
    """The key of draws of sequence `number` under a seed; without one, a random key."""
    if seed is None:
        return int(torch.randint(2**62, ()))
    with np.errstate(over="ignore"):
        return int(_mix(_mix(np.array([seed % 2**64], np.uint64)) + np.uint64(number % 2**64))[0])


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
