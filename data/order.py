"""The order of rows: a keyed, seekable permutation of range(rows) for each epoch, computed and never stored.

The permutation is a generalised Feistel network over range(a) x range(b) with a * b >= rows, plus cycle walking for
the values that fall outside range(rows) (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). a and b
lie next to sqrt(rows), so only about one value in sqrt(rows) has to walk.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLY_2 = np.uint64(0x94D049BB133111EB)

Shuffle = Literal["full", "blocks", "none"]


@dataclass(frozen=True)
class Order:
    """Which row of a dataset its i-th visit reads, for any i: a new permutation of the rows in each epoch."""

    rows: int
    """Rows in the dataset, at most 2^62."""
    key: int
    """64 bits, from `derive_key`."""
    shuffle: Shuffle = "full"
    block_rows: int = 512
    """Rows that lie together in a block (shuffle "blocks")."""
    window_blocks: int = 64
    """Blocks whose rows are mixed with each other (shuffle "blocks")."""

    def __call__(self, index_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the visits `index_N` >= 0. Visit i belongs to epoch i // rows."""
        epoch_N, position_N = np.divmod(index_N, self.rows)
        if self.shuffle == "none":
            return position_N
        key = subkey(np.array([self.key], np.uint64), _once_if_equal(epoch_N))
        if self.shuffle == "full":
            return permute(position_N, self.rows, key)
        return self._permute_blocks(position_N, key)

    def _permute_blocks(self, position_N: NDArray[np.int64], key: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows shuffled inside windows of shuffled blocks, on a dataset rotated by a random distance per epoch.

        The rows of the last, short block stay at the end of the epoch, but the rotation makes them other rows each time.
        """
        block_key, rotation_key = subkey(key, np.array([0])), subkey(key, np.array([1]))
        window_rows = self.block_rows * self.window_blocks
        window_N = position_N // window_rows
        size_N = np.minimum(window_rows, self.rows - window_N * window_rows)
        slot_N = window_N * window_rows
        for size in np.unique(size_N):
            here = size_N == size
            window_key = subkey(_select(key, here), 2 + _once_if_equal(window_N[here]))
            slot_N[here] += permute(position_N[here] % window_rows, int(size), window_key)

        block_N, within_N = np.divmod(slot_N, self.block_rows)
        whole_blocks = self.rows // self.block_rows
        whole = block_N < whole_blocks
        block_N[whole] = permute(block_N[whole], max(whole_blocks, 1), _select(block_key, whole))
        rotation = (rotation_key % np.uint64(self.rows)).astype(np.int64)
        return (block_N * self.block_rows + within_N + rotation) % self.rows


def derive_key(seed: int, name: str, number: int) -> int:
    """64 bits of BLAKE2b over the run's seed, what the key is for (of an order the dataset's manifest hash, otherwise an
    objective) and a number (of an order the dataset's place in the mixture)."""
    digest = hashlib.blake2b(f"{seed}:{name}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permute(position_N: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Images of positions under the permutation of range(size) that `key` names.

    `key` is uint64 [1] for all positions, or [N] with one key each. 1 <= size <= 2^62.
    """
    assert 1 <= size <= 2**62
    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    round_keys = subkey(key, np.arange(ROUNDS)[:, None])
    value_N = _feistel(position_N.astype(np.uint64), width, height, round_keys).astype(np.int64)
    outside = value_N >= size
    if outside.any():
        value_N[outside] = permute(value_N[outside], size, _select(key, outside))
    return value_N


def _feistel(
    value_N: NDArray[np.uint64], width: int, height: int, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of range(width * height): each half in turn is shifted by a keyed hash of the other one."""
    high_N, low_N = np.divmod(value_N, np.uint64(width))
    for number in range(0, ROUNDS, 2):
        low_N = _shift(low_N, high_N ^ round_keys[number], np.uint64(width))
        high_N = _shift(high_N, low_N ^ round_keys[number + 1], np.uint64(height))
    return high_N * np.uint64(width) + low_N


def _shift(half_N: NDArray[np.uint64], word_N: NDArray[np.uint64], modulus: np.uint64) -> NDArray[np.uint64]:
    """(half + hash of word) mod modulus, without a division: modulus <= 2^31. `word_N` is overwritten."""
    word_N ^= word_N >> np.uint64(32)
    word_N *= MULTIPLY_1
    word_N ^= word_N >> np.uint64(29)
    word_N *= MULTIPLY_2
    word_N >>= np.uint64(32)
    word_N *= modulus
    word_N >>= np.uint64(32)
    word_N += half_N
    return np.minimum(word_N, word_N - modulus)  # below the modulus the difference wraps around to a huge number


def subkey(key: NDArray[np.uint64], number: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Key `number` of those that descend from `key`: the SplitMix64 generator (Steele, Lea, Flood 2014), seekable."""
    word = key + GOLDEN * (number.astype(np.uint64) + np.uint64(1))
    word = (word ^ (word >> np.uint64(30))) * MULTIPLY_1
    word = (word ^ (word >> np.uint64(27))) * MULTIPLY_2
    return word ^ (word >> np.uint64(31))


def _select(key: NDArray[np.uint64], chosen: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return key if len(key) == 1 else key[chosen]


def _once_if_equal(number_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """One element instead of N equal ones, so that what follows from it is computed once."""
    return number_N[:1] if (number_N == number_N[:1]).all() else number_N
