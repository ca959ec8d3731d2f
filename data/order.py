"""The order of rows: a keyed, seekable permutation of range(rows) for each epoch, computed and never stored.

The permutation is a generalised Feistel network over range(a) x range(b) with a * b >= rows, plus cycle walking for
the values that fall outside range(rows) (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). a and b
lie next to sqrt(rows), so only about one value in sqrt(rows) has to walk.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
MULTIPLY_2 = np.uint64(0x94D049BB133111EB)

Shuffle = Literal["full", "blocks", "none"]


@dataclass(frozen=True)
class Order:
    """Which row of a dataset its i-th visit reads, for any i: a new permutation of the rows in each epoch.

    `rows` and `key` are numbers of one dataset, or arrays for several, of which `of` chooses.
    """

    rows: int | NDArray[np.int64]
    """Rows in the dataset, at most 2^62."""
    key: int | NDArray[np.uint64]
    """64 bits, from `derive_key`."""
    shuffle: Shuffle = "full"
    block_rows: int = 512
    """Rows that lie together in a block (shuffle "blocks")."""
    window_blocks: int = 64
    """Blocks whose rows are mixed with each other (shuffle "blocks")."""

    def of(self, dataset_N: NDArray[np.int64]) -> "Order":
        """The order in which each visit reads, where these are visits of the datasets `dataset_N`."""
        assert isinstance(self.rows, np.ndarray) and isinstance(self.key, np.ndarray)
        chosen_N = _once_if_equal(dataset_N)
        return replace(self, rows=self.rows[chosen_N], key=self.key[chosen_N])

    def __call__(self, index_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the visits `index_N` >= 0. Visit i belongs to epoch i // rows."""
        rows = np.atleast_1d(self.rows)
        epoch_N, position_N = np.divmod(index_N, rows)
        if self.shuffle == "none":
            return position_N
        key = subkey(np.atleast_1d(np.asarray(self.key, np.uint64)), _once_if_equal(epoch_N))
        if self.shuffle == "full":
            return permute(position_N, rows, key)
        return self._permute_blocks(position_N, rows, key)

    def _permute_blocks(
        self, position_N: NDArray[np.int64], rows: NDArray[np.int64], key: NDArray[np.uint64]
    ) -> NDArray[np.int64]:
        """Rows shuffled inside windows of shuffled blocks, on a dataset rotated by a random distance per epoch.

        The rows of the last, short block stay at the end of the epoch, but the rotation makes them other rows each time.
        """
        block_key, rotation_key = subkey(key, np.array([0])), subkey(key, np.array([1]))
        window_rows = self.block_rows * self.window_blocks
        window_N = position_N // window_rows
        size_N = np.minimum(window_rows, rows - window_N * window_rows)
        window_key = subkey(key, 2 + _once_if_equal(window_N))
        slot_N = window_N * window_rows + permute(position_N % window_rows, _once_if_equal(size_N), window_key)

        block_N, within_N = np.divmod(slot_N, self.block_rows)
        whole_blocks = rows // self.block_rows
        whole = block_N < whole_blocks
        whole_size = _select(np.maximum(whole_blocks, 1), whole)
        block_N[whole] = permute(block_N[whole], whole_size, _select(block_key, whole))
        rotation = (rotation_key % rows.astype(np.uint64)).astype(np.int64)
        return (block_N * self.block_rows + within_N + rotation) % rows


def derive_key(seed: int, name: str, number: int) -> int:
    """64 bits of BLAKE2b over the run's seed, what the key is for (of an order the dataset's manifest hash, otherwise an
    objective) and a number (of an order the dataset's place in the mixture)."""
    digest = hashlib.blake2b(f"{seed}:{name}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permute(position_N: NDArray[np.int64], size: int | NDArray[np.int64], key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Images of positions under the permutation of range(size) that `key` names.

    `key` (uint64) and `size` are [1] for all positions, or [N] with one each. 1 <= size <= 2^62.
    """
    size = np.atleast_1d(size)
    assert size.min() >= 1 and size.max() <= 2**62
    width = _floor_sqrt(size - 1) + 1
    height = -(-size // width)
    round_keys = subkey(key, np.arange(ROUNDS)[:, None])
    sides = width.astype(np.uint64), height.astype(np.uint64)
    value_N = _feistel(position_N.astype(np.uint64), *sides, round_keys).astype(np.int64)
    outside = value_N >= size
    if outside.any():
        value_N[outside] = permute(value_N[outside], _select(size, outside), _select(key, outside))
    return value_N


def _floor_sqrt(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exact, where a square root in fp64 may be off by one: 0 <= number < 2^62."""
    root = np.sqrt(number).astype(np.int64)
    root -= root * root > number
    return root + ((root + 1) * (root + 1) <= number)


def _feistel(
    value_N: NDArray[np.uint64], width: NDArray[np.uint64], height: NDArray[np.uint64], round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """A permutation of range(width * height): each half in turn is shifted by a keyed hash of the other one."""
    high_N, low_N = np.divmod(value_N, width)
    for number in range(0, ROUNDS, 2):
        low_N = _shift(low_N, high_N ^ round_keys[number], width)
        high_N = _shift(high_N, low_N ^ round_keys[number + 1], height)
    return high_N * width + low_N


def _shift(half_N: NDArray[np.uint64], word_N: NDArray[np.uint64], modulus: NDArray[np.uint64]) -> NDArray[np.uint64]:
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


def _select(values: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[Any]:
    """The chosen ones of [N], or the [1] that stands for all."""
    return values if len(values) == 1 else values[chosen]


def _once_if_equal(number_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """One element instead of N equal ones, so that what follows from it is computed once."""
    return number_N[:1] if (number_N == number_N[:1]).all() else number_N
