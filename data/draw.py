"""Random numbers that are a function of (seed, objective, global sample, number of the draw) and of nothing else."""

import numpy as np
from numpy.typing import NDArray

from data.order import subkey

Words = NDArray[np.uint64]
"""64 random bits each."""


def draw(key: int, sample_N: NDArray[np.int64], number: NDArray[np.int64]) -> Words:
    """Word `number` of each sample: [N] for as many numbers, [N, 1] samples with [C] numbers give [N, C]."""
    return subkey(subkey(np.array([key], np.uint64), sample_N), number)


def chance(words: Words, probability: float) -> NDArray[np.bool_]:
    """True with a probability from 0 to 1, by the words' high bits."""
    limit = int(probability * 2**64)
    return words <= np.uint64(limit - 1) if limit else np.zeros(words.shape, np.bool_)


def below(words: Words, bound: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniform in range(bound), 1 <= bound <= 2^31."""
    return ((words >> np.uint64(32)) * np.asarray(bound).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def pick(word: int, bound: int) -> int:
    """`below` for one word, exact for any bound."""
    return word * bound >> 64
