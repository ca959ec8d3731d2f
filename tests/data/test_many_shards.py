"""Ten thousand shards and 10^13 tokens: exact places, few open files, and each file looked at by one rank."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from config import DataError
from config.batch_ramp import batch_size_at, rows_after
from config.schema import BatchSection
from data.blend import Blend, Mixture, Phase, quantise
from data.dataset import open_dataset
from data.manifest import BLOCK_BYTES, MOST_BLOCKS, Manifest, ShardEntry, block_size
from data.order import Order, derive_key, permute
from data.pack import Rows
from data.shard import ShardWriter

SHARDS, LENGTH = 10_000, 2047
TOKENS = [10**9 + 7 * number for number in range(SHARDS)]


def virtual_rows(counts_K, row_length=LENGTH):
    """Datasets of shards that have only a number of tokens."""
    shards = [
        [SimpleNamespace(prefix=Path(f"d{k}/s"), token_count=n) for n in counts] for k, counts in enumerate(counts_K)
    ]
    return Rows(shards, row_length, vocab_size=100)


def test_addresses_in_ten_thousand_shards_are_those_of_whole_numbers():
    """Against Python's integers, also beside the borders of shards, in datasets of 5 * 10^12 tokens each."""
    halves = [TOKENS[: SHARDS // 2], TOKENS[SHARDS // 2 :]]
    rows = virtual_rows(halves)
    assert sum(TOKENS) > 10**13 and rows.count_K.tolist() == [(sum(half) - 1) // LENGTH for half in halves]
    for dataset, half in enumerate(halves):
        starts = np.cumsum([0, *half])[:-1].tolist()
        near = [start // LENGTH + offset for start in starts[1::999] for offset in (-1, 0, 1)]
        index = np.array([0, *near, rows.count_K[dataset] - 1])
        for row, (shard, begin) in zip(
            index.tolist(), rows.locate(np.full_like(index, dataset), index).tolist(), strict=True
        ):
            own = shard - dataset * len(half)
            assert starts[own] + begin == row * LENGTH and 0 <= begin < half[own]


def test_the_order_of_several_datasets_is_that_of_each():
    rows_K, keys = [1, 7, 10**6 + 3, 2**53 + 1, 2**62], [derive_key(1, "x", number) for number in range(5)]
    dataset_N = np.random.default_rng(0).integers(0, 5, 4000)
    index_N = np.random.default_rng(1).integers(0, 2**40, 4000)
    for shuffle in ("full", "blocks", "none"):
        together = Order(np.array(rows_K), np.array(keys, np.uint64), shuffle, 5, 3).of(dataset_N)(index_N)
        for number, (rows, key) in enumerate(zip(rows_K, keys, strict=True)):
            here = dataset_N == number
            np.testing.assert_array_equal(together[here], Order(rows, key, shuffle, 5, 3)(index_N[here]))


def test_sizes_beside_squares_are_permuted_whole():
    """Where a square root in fp64 is off by one: the two sides must still span every size."""
    key = np.array([5], np.uint64)
    roots = [2**31 - 1, 2**30 + 1, 94906267, 3_037_000]
    for size in [root * root + offset for root in roots for offset in (-1, 0, 1)]:
        position = np.array([0, 1, size // 2, size - 2, size - 1])
        images = permute(position, size, key)
        assert len(set(images.tolist())) == 5 and images.min() >= 0 and images.max() < size


def test_a_blend_is_exact_after_ten_trillion_tokens():
    """Among n samples each dataset gave its share to within a sample or two; places count up without a gap."""
    samples, weights = 10**13 // 128, [5, 3, 2]
    mixture = Mixture([Phase(0, weights), Phase(10**10, [1, 0, 9])])
    early, late = Blend(weights).counts(10**10), Blend([1, 0, 9]).counts(samples - 10**10)
    assert mixture.counts(samples).tolist() == (early + late).tolist() and int((early + late).sum()) == samples
    for given, weight in zip(early.tolist(), quantise(weights).tolist(), strict=True):
        assert abs(given * 2**30 - weight * 10**10) <= 2**30, "more than a sample off its share"
    sample_N = np.arange(samples, samples + 1000)
    dataset_N, index_N = mixture.pick(sample_N)
    for dataset, before in enumerate((early + late).tolist()):
        given = index_N[dataset_N == dataset]
        np.testing.assert_array_equal(given, before + np.arange(len(given)))


def test_a_ramp_counts_ten_trillion_tokens_exactly():
    phases = [
        {"until_tokens": 10**12 + 1, "global_batch_size": 1024},
        {"until_tokens": 5 * 10**12, "global_batch_size": 2048},
    ]
    batch = BatchSection.model_validate({"global_batch_size": 4096, "micro_batch_size": 1, "ramp": phases})
    first = -(-(10**12 + 1) // (1024 * 2048))
    second = -(-(5 * 10**12 - first * 1024 * 2048) // (2048 * 2048))
    steps = first + second + 10**6
    assert rows_after(batch, steps, 2048) == first * 1024 + second * 2048 + 10**6 * 4096
    border = first * 1024
    assert [batch_size_at(batch, cursor, 2048) for cursor in (border - 1024, border, border + second * 2048)] == [
        1024,
        2048,
        4096,
    ]


@pytest.fixture
def dataset(tmp_path):
    """Six shards of 40 numbered tokens."""
    names = [f"train-{number:05}" for number in range(6)]
    for number, name in enumerate(names):
        with ShardWriter(tmp_path / name, np.dtype("<u2")) as writer:
            writer.add(np.arange(40 * number, 40 * number + 40))
    Manifest(
        tokens=240, documents=6, text_bytes=0, vocab_size=300, dtype="uint16", eod_id=0, tokenizer_fingerprint="",
        sources=(), settings={}, dropped={}, splits={"train": tuple(ShardEntry.of(tmp_path / n, 0) for n in names)},
    ).save(tmp_path)  # fmt: skip
    return tmp_path


@pytest.mark.parametrize("damaged", range(6))
def test_a_damaged_shard_is_found_at_start_by_one_rank(dataset, damaged):
    os.truncate(dataset / f"train-{damaged:05}.bin", 4)
    found = []
    for rank in range(4):
        try:
            open_dataset(dataset, rank=rank, world_size=4)
        except DataError as error:
            assert error.alone and f"train-{damaged:05}.bin: 4 bytes" in str(error)
            found.append(rank)
    assert found == [damaged % 4]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, 4), r"train-00001\.bin: 4 bytes, but manifest\.json says 80"),
        (lambda path: os.truncate(path, 0), r"train-00001\.bin: 0 bytes, but manifest\.json says 80"),
        (os.remove, r"train-00001\.bin: no such file, though manifest\.json names it"),
    ],
)
def test_a_shard_that_this_node_alone_lacks_is_named_when_it_is_read(dataset, damage, message):
    damage(dataset / "train-00001.bin")
    rows = Rows([open_dataset(dataset, rank=0, world_size=2).shards], 10, vocab_size=300)
    assert rows.read(np.array([[0, 0]])).tolist() == [list(range(11))]
    with pytest.raises(DataError, match=message):
        rows.read(np.array([[1, 0]]))


def test_few_shards_are_mapped_at_a_time_and_all_are_read(dataset, monkeypatch):
    monkeypatch.setattr("data.pack.most_open_files", lambda: 16)
    rows = Rows([open_dataset(dataset).shards], 9, vocab_size=300)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for shard in (3, 0, 5, 1, 4, 2):
            assert rows.read(np.array([[shard, 5]]))[0].tolist() == list(range(40 * shard + 5, 40 * shard + 15))
            assert len(os.listdir("/proc/self/fd")) <= before + 2
    across = rows.read(np.array([[2, 35], [0, 38]]))
    assert across.tolist() == [list(range(115, 125)), list(range(38, 48))]


def test_a_manifest_has_at_most_64_checksums_of_a_shard():
    for size in (0, 2, 100 << 20, 256 << 20, (256 << 20) + 2, 40 * 10**9, 2 * 10**13):
        block = block_size(size)
        assert block % BLOCK_BYTES == 0 and -(-size // block) <= MOST_BLOCKS
        assert block == BLOCK_BYTES or -(-size // (block - BLOCK_BYTES)) > MOST_BLOCKS, "no larger than needed"


def test_a_manifest_that_was_replaced_is_read_again(dataset):
    first = Manifest.load(dataset)
    assert Manifest.load(dataset) is first
    first.model_copy(update={"eod_id": 7}).save(dataset)
    assert Manifest.load(dataset).eod_id == 7
