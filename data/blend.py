"""Which dataset global sample g comes from: a stateless, exact blend.

The datasets are the leaves of a balanced binary tree whose nodes carry integer weights. A node of weight w gives its
left child of weight a exactly round(n * a / w) of its first n samples, so the place of any sample, and the number of
samples any dataset has given before it, is found in O(log K) steps without looking at the samples before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from config import ConfigError

TOTAL_WEIGHT = 2**30


class Blend:
    """Fixed weights. After every prefix, each dataset is within ceil(log2 K) / 2 samples of its exact share."""

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = quantise(weights)
        level = np.zeros(1 << (len(weights) - 1).bit_length(), np.int64)
        level[: len(weights)] = self.weights
        self._levels: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        """For each level from the root down: weight of the left child and of the node itself, per node."""
        while len(level) > 1:
            left, level = level[0::2], level.reshape(-1, 2).sum(axis=1)
            self._levels.insert(0, (left, np.maximum(level, 1)))

    def pick(self, sample_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset of each sample, and how many samples that dataset gave before it."""
        node_N, index_N = np.zeros_like(sample_N), sample_N
        for left, total in self._levels:
            left_N, total_N = left[node_N], total[node_N]
            before_N = _share(index_N, left_N, total_N)
            goes_left_N = _share(index_N + 1, left_N, total_N) > before_N
            index_N = np.where(goes_left_N, before_N, index_N - before_N)
            node_N = 2 * node_N + ~goes_left_N
        return node_N, index_N

    def counts(self, samples: int) -> NDArray[np.int64]:
        """Samples that each dataset gives among the first `samples`, int64 [K]."""
        count = np.array([samples])
        for left, total in self._levels:
            given = _share(count, left, total)
            count = np.stack([given, count - given], axis=1).reshape(-1)
        return count[: len(self.weights)]


@dataclass(frozen=True)
class Phase:
    """Weights that hold from global sample `first_sample` on."""

    first_sample: int
    weights: Sequence[float]


class Mixture:
    """Blends that follow one another; each dataset goes on where the earlier phases left it.

    Raises ConfigError unless the phases start at sample 0 and then ever later.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        starts = [phase.first_sample for phase in phases]
        assert starts[0] == 0
        for earlier, later in pairwise(starts):
            if later <= earlier:
                raise ConfigError(
                    f"data.mixture_schedule: a phase that starts at row {later:,} follows one that starts at row "
                    f"{earlier:,}; give the phases in order, each at least one row after the one before"
                )
        self._starts = np.array(starts)
        self._blends = [Blend(phase.weights) for phase in phases]
        lengths = np.diff(self._starts).tolist()
        given = [blend.counts(length) for blend, length in zip(self._blends, lengths, strict=False)]
        self._before = np.cumsum([np.zeros(len(phases[0].weights), np.int64), *given], axis=0)

    def pick(self, sample_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Dataset of each global sample, and how many samples that dataset gave before it, over all phases."""
        dataset_N, index_N = np.empty_like(sample_N), np.empty_like(sample_N)
        phase_N = np.searchsorted(self._starts, sample_N, side="right") - 1
        for phase in np.unique(phase_N):
            here = phase_N == phase
            dataset, index = self._blends[phase].pick(sample_N[here] - self._starts[phase])
            dataset_N[here] = dataset
            index_N[here] = index + self._before[phase, dataset]
        return dataset_N, index_N

    def counts(self, samples: int) -> NDArray[np.int64]:
        """Samples that each dataset gives among the first `samples`, int64 [K]."""
        phase = int(np.searchsorted(self._starts, samples, side="right")) - 1
        return self._before[phase] + self._blends[phase].counts(samples - int(self._starts[phase]))


def quantise(weights: Sequence[float]) -> NDArray[np.int64]:
    """Weights as integers that sum to 2^30 (largest remainder), each within 2^-30 of its share.

    Raises ConfigError if no weight is positive, or one is too small beside the others to be kept.
    """
    weight_K = np.asarray(weights, np.float64)
    if not (np.isfinite(weight_K).all() and (weight_K >= 0).all() and weight_K.sum() > 0):
        raise ConfigError(f"mixture weights {list(weights)}: give finite numbers, none negative, at least one above 0")
    exact_K = weight_K / weight_K.sum() * TOTAL_WEIGHT
    whole_K = np.floor(exact_K).astype(np.int64)
    missing = TOTAL_WEIGHT - int(whole_K.sum())
    whole_K[np.argsort(whole_K - exact_K, kind="stable")[:missing]] += 1
    lost = np.flatnonzero((weight_K > 0) & (whole_K == 0))
    if lost.size:
        raise ConfigError(
            f"mixture weight {weights[lost[0]]:g} is less than one part in 2^30 of the sum {weight_K.sum():g}: "
            "raise it, or set it to 0"
        )
    return whole_K


def _share(count: NDArray[np.int64], part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.int64]:
    """count * part / whole rounded to the nearest integer, exact for any count: part <= whole <= 2^31."""
    quotient, remainder = np.divmod(count, whole)
    return quotient * part + (remainder * part + whole // 2) // whole
