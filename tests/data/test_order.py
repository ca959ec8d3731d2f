"""The order of rows is an exact, well-mixed permutation that costs the same for any number of rows."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import order as order_module
from data.order import Order, derive_key, permute

KEYS = [np.array([key], np.uint64) for key in (0, 1, 0x9E3779B97F4A7C15, 2**64 - 1)]
AROUND_POWERS_OF_TWO = [2**bits + offset for bits in range(12, 19) for offset in (-1, 0, 1)]


def is_permutation(values: np.ndarray, size: int) -> bool:
    return values.min() >= 0 and len(values) == size and bool((np.bincount(values, minlength=size) == 1).all())


def chi_square(observed: np.ndarray, expected: float) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_bijection_for_every_size_up_to_5000(key):
    wrong = [size for size in range(1, 5001) if not is_permutation(permute(np.arange(size), size, key), size)]
    assert not wrong


@pytest.mark.parametrize("size", AROUND_POWERS_OF_TWO)
def test_bijection_around_powers_of_two(size):
    assert 65537 in AROUND_POWERS_OF_TWO
    assert all(is_permutation(permute(np.arange(size), size, key), size) for key in KEYS)


@pytest.mark.parametrize("size", [2**31 - 1, 2**32 + 1, 2**53 + 1, 2**62 - 1, 2**62])
def test_no_two_positions_share_an_image_in_huge_ranges(size):
    positions = np.concatenate([np.arange(50_000), size - 1 - np.arange(50_000)])
    for key in KEYS:
        images = permute(positions, size, key)
        assert images.min() >= 0 and images.max() < size
        assert len(np.unique(images)) == len(positions)
        assert images.max() - images.min() > 0.99 * size, "the images cover only a part of the range"


@given(
    rows=st.integers(1, 3000),
    block_rows=st.integers(1, 70),
    window_blocks=st.integers(1, 9),
    key=st.integers(0, 2**64 - 1),
    shuffle=st.sampled_from(["full", "blocks", "none"]),
)
def test_each_row_once_in_each_epoch(rows, block_rows, window_blocks, key, shuffle):
    order = Order(rows, key, shuffle, block_rows, window_blocks)
    epochs = order(np.arange(3 * rows)).reshape(3, rows)
    assert all(is_permutation(epoch, rows) for epoch in epochs)


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_another_order_in_each_epoch_and_under_each_key(shuffle):
    orders = [
        Order(2000, derive_key(*name), shuffle, 50, 4) for name in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]
    ]
    epochs = [epoch for order in orders for epoch in order(np.arange(5 * 2000)).reshape(5, 2000)]
    for one, other in itertools.combinations(epochs, 2):
        assert (one == other).mean() < 0.01


def test_without_shuffle_rows_come_as_written():
    assert Order(7, key=1, shuffle="none")(np.arange(16)).tolist() == [*range(7), *range(7), 0, 1]


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_any_slice_of_the_order_is_found_without_the_rest(shuffle):
    order = Order(1003, 5, shuffle, 10, 3)
    whole = order(np.arange(4000))
    some = np.random.default_rng(0).permutation(4000)[:500]
    np.testing.assert_array_equal(order(some), whole[some])
    assert [int(order(np.array([index]))[0]) for index in range(990, 1020)] == whole[990:1020].tolist()


def test_order_never_changes_between_versions():
    """A resumed run depends on these numbers: another algorithm needs another name in the recipe."""
    key = derive_key(1337, "c0ffee", 0)
    assert key == 0x6DC838BE882FAA45
    assert Order(1_000_003, key)(np.array([0, 1, 2, 1_000_003])).tolist() == [742261, 34309, 91355, 160574]
    assert Order(1_000_003, key, "blocks")(np.array([0, 1, 2, 1_000_003])).tolist() == [690281, 664238, 719389, 69906]


@pytest.mark.parametrize("size", [4096, 10_007, 65_537])
def test_positions_and_images_are_independent(size):
    """Statistics of the permutation lie within six standard deviations of those of a random one."""
    for key in KEYS:
        images = permute(np.arange(size), size, key)
        cells, _, _ = np.histogram2d(np.arange(size), images, bins=16)
        assert abs(chi_square(cells, size / 256) - 225) < 6 * math.sqrt(2 * 225)
        for lag in (1, 2, 64, 128):
            correlation = np.corrcoef(images[:-lag], images[lag:])[0, 1]
            assert abs(correlation) < 6 / math.sqrt(size), f"rows {lag} apart in the order are related"
        steps = np.diff(images) % size
        assert chi_square(np.histogram(steps, bins=64, range=(0, size))[0], (size - 1) / 64) < 63 + 6 * math.sqrt(126)
        repeats = len(steps) - len(np.unique(steps))
        assert abs(repeats / size - math.exp(-1)) < 6 * 0.6 / math.sqrt(size), (
            "differences of neighbours repeat too often"
        )


def test_all_permutations_of_a_tiny_range_are_equally_likely():
    keys = np.random.default_rng(0).integers(0, 2**64, 24_000, np.uint64)
    images = np.stack([permute(np.full(len(keys), position), 4, keys) for position in range(4)], axis=1)
    _, observed = np.unique(images, axis=0, return_counts=True)
    assert len(observed) == 24
    assert chi_square(observed, 1000) < 23 + 6 * math.sqrt(2 * 23)


def test_first_row_of_the_epochs_is_spread_evenly():
    rows = 11
    first = Order(rows, key=3)(np.arange(22_000) * rows)
    assert chi_square(np.bincount(first, minlength=rows), 2000) < 10 + 6 * math.sqrt(20)


def test_blocks_keep_reads_near_each_other():
    rows, block_rows, window_blocks = 100_000, 100, 8
    order = Order(rows, 9, "blocks", block_rows, window_blocks)
    for window in range(0, rows - 800, 800):
        read = np.sort(order(window + np.arange(800)))
        runs = 1 + int((np.diff(read) > 1).sum())
        assert runs <= window_blocks + 1, "a window reads its blocks, of which one may wrap around the dataset's end"
        assert (np.diff(order(window + np.arange(800))) == 1).mean() < 0.02, "rows of a window are not mixed"


def test_ragged_tail_of_blocks_is_another_one_in_each_epoch():
    order = Order(1037, 4, "blocks", 50, 2)
    tails = [frozenset(order(epoch * 1037 + np.arange(1000, 1037)).tolist()) for epoch in range(20)]
    assert len(set(tails)) == 20
    assert len(frozenset.union(*tails)) > 400


def test_cost_does_not_grow_with_the_number_of_rows(monkeypatch):
    touched = 0
    feistel = order_module._feistel

    def counting_feistel(values, *arguments):
        nonlocal touched
        touched += len(values)
        return feistel(values, *arguments)

    monkeypatch.setattr(order_module, "_feistel", counting_feistel)
    for rows in [10**exponent for exponent in range(6, 13)]:
        for shuffle, passes in [("full", 1), ("blocks", 2)]:
            touched = 0
            tracemalloc.start()
            Order(rows, 1, shuffle)(rows * 9 // 10 + np.arange(1000))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert touched <= 1.1 * passes * 1000, f"{rows:,} rows: {touched} permuted to find 1000"
            assert peak < 1_000_000, f"{rows:,} rows: {peak:,} bytes to find 1000"
