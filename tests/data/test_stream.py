"""The stream's promise: the rows of a step depend on the seed, the data, the mixture and the cursor, and on nothing else."""

import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from config import DataError
from config.data_schema import DataSection
from config.schema import BatchSection
from data.batch import IGNORE
from data.blend import Mixture, Phase
from data.manifest import Manifest, ShardEntry
from data.order import Order
from data.pack import Rows
from data.shard import Shard, ShardWriter
from data.stream import Stream, open_stream
from data.validation import open_validation

ROW_LENGTH = 8
VOCAB_SIZE = 30_000
FIRST_TOKENS = [0, 10_000, 20_000]
TOKENS = [4000, 1500, 700]


def write_dataset(folder: Path, first: int, tokens: int, fingerprint: str = "f" * 64) -> str:
    """A prepared dataset whose tokens are numbered, in three shards of documents of 13 tokens; a tenth is for validation."""
    folder.mkdir()
    bounds = {"a": (0, tokens // 2 + 3), "b": (tokens // 2 + 3, tokens - 300), "c": (tokens - 300, tokens)}
    bounds["valid"] = (tokens, tokens + tokens // 10)
    for name, (begin, end) in bounds.items():
        with ShardWriter(folder / name, np.dtype("<u2")) as writer:
            for start in range(begin, end, 13):
                writer.add(np.arange(first + start, first + min(start + 13, end)))
    entries = {name: ShardEntry.of(folder / name, text_bytes=0) for name in bounds}
    manifest = Manifest(
        tokens=tokens, documents=0, text_bytes=0, vocab_size=VOCAB_SIZE, dtype="uint16", eod_id=0,
        tokenizer_fingerprint=fingerprint, sources=(), settings={}, dropped={},
        splits={"train": tuple(entries[name] for name in "abc"), "valid": (entries["valid"],)},
    )  # fmt: skip
    manifest.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataSection:
    """Three datasets of 499, 187 and 87 rows whose weights change after 60 rows."""
    root = tmp_path_factory.mktemp("corpora")
    paths = [
        write_dataset(root / f"c{i}", *numbers) for i, numbers in enumerate(zip(FIRST_TOKENS, TOKENS, strict=True))
    ]
    return DataSection.model_validate(
        {
            "datasets": [{"path": path, "weight": weight} for path, weight in zip(paths, [5, 3, 2], strict=True)],
            "mixture_schedule": [{"from_tokens": 60 * ROW_LENGTH - 3, "weights": [1, 0, 9]}],
            "row_length": ROW_LENGTH,
            "prefetch_steps": 0,
        }
    )


def make_stream(data, global_batch_size=48, micro_batch_size=None, *, seed=1, **options):
    batch = BatchSection(global_batch_size=global_batch_size, micro_batch_size=micro_batch_size or global_batch_size)
    return open_stream(data, batch, seed=seed, vocab_size=VOCAB_SIZE, **options)


def rows_of(batches):
    return np.concatenate([np.concatenate([batch.tokens_BT, batch.labels_BT[:, -1:]], axis=1) for batch in batches])


def read(stream, cursor, steps):
    """Rows of some steps of one stream, [steps, rows, T + 1]."""
    out, walk = [], stream.steps(cursor)
    for number in range(1, steps + 1):
        batches, after = next(walk)
        assert after == cursor + number * 48
        out.append(rows_of(batches))
    walk.close()
    return np.stack(out)


def test_one_dataset_gives_each_token_once_per_epoch(data):
    one = data.model_copy(update={"datasets": data.datasets[:1], "mixture_schedule": ()})
    walk = make_stream(one, 499).steps(0)
    epochs = [rows_of(next(walk)[0]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch[:, 1:].ravel()) == list(range(1, 499 * ROW_LENGTH + 1))
        assert (np.diff(epoch) == 1).all()
    assert (epochs[0] == epochs[1]).mean() < 0.05 and (epochs[1] == epochs[2]).mean() < 0.05


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"),
    [(ranks, rows) for ranks in (1, 2, 3, 4, 8) for rows in (1, 2, 3, 4, 6, 16) if 48 % (ranks * rows) == 0],
)
@pytest.mark.parametrize("document_masking", [False, True])
def test_ranks_and_micro_batches_only_slice_the_global_batch(data, world_size, micro_batch_size, document_masking):
    data = data.model_copy(update={"document_masking": document_masking})
    whole = make_stream(data)
    ranks = [make_stream(data, 48, micro_batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for cursor in (0, 48, 4800, 12_345):
        (expected,), _ = whole.step(cursor)
        parts = [batch for stream in ranks for batch in stream.step(cursor)[0]]
        assert all(batch.tokens_BT.shape == (micro_batch_size, ROW_LENGTH) for batch in parts)
        np.testing.assert_array_equal(np.concatenate([batch.tokens_BT for batch in parts]), expected.tokens_BT)
        np.testing.assert_array_equal(np.concatenate([batch.labels_BT for batch in parts]), expected.labels_BT)
        assert (expected.labels_BT == IGNORE).any() == document_masking


def test_an_origin_is_where_the_row_was_read(data):
    whole = make_stream(data)
    for cursor, rank, number in [(0, 0, 0), (0, 2, 15), (4800, 1, 7), (12_345, 2, 0)]:
        mine = make_stream(data, rank=rank, world_size=3, micro_batch_size=4)
        words = whole.origin(cursor, rank, 3, number)
        found = re.fullmatch(r"sample ([\d,]+), (\S+).bin from token ([\d,]+) in document ([\d,]+) on", words)
        sample, begin, document = (int(found[group].replace(",", "")) for group in (1, 3, 4))
        shard = Shard.open(found[2])
        assert sample == cursor + rank * 16 + number
        assert shard.tokens[begin] == rows_of(mine.step(cursor)[0])[number][0]
        assert document == begin // 13


def test_samples_do_not_depend_on_the_global_batch_size(data):
    small, large = make_stream(data, 16).steps(0), make_stream(data, 240).steps(0)
    expected = rows_of(next(large)[0])
    np.testing.assert_array_equal(np.concatenate([rows_of(next(small)[0]) for _ in range(15)]), expected)


@pytest.mark.parametrize("prefetch_steps", [0, 3])
def test_resume_at_any_step_is_as_if_uninterrupted(data, prefetch_steps):
    stream = make_stream(data.model_copy(update={"prefetch_steps": prefetch_steps}), micro_batch_size=8)
    whole = read(stream, 0, 120)
    for step in (0, 1, 2, 59, 85, 86, 110):
        np.testing.assert_array_equal(read(stream, step * 48, 4), whole[step : step + 4])
        np.testing.assert_array_equal(rows_of(stream.step(step * 48)[0]), whole[step])


def test_another_seed_is_another_order(data):
    same, other = read(make_stream(data), 0, 5), read(make_stream(data, seed=2), 0, 5)
    np.testing.assert_array_equal(same, read(make_stream(data, seed=1), 0, 5))
    assert (same == other).mean() < 0.05


def test_mixture_follows_its_schedule(data):
    """The first 60 samples are mixed 5 : 3 : 2, all later ones 1 : 0 : 9."""
    stream = make_stream(data, 60)
    first, second = (rows_of(stream.step(cursor)[0])[:, 0] for cursor in (0, 60))
    assert np.bincount(np.searchsorted(FIRST_TOKENS, first, side="right") - 1).tolist() == [30, 18, 12]
    assert np.bincount(np.searchsorted(FIRST_TOKENS, second, side="right") - 1).tolist() == [6, 0, 54]


def test_background_thread_hands_on_the_same_steps_and_their_errors(data):
    ahead = data.model_copy(update={"prefetch_steps": 2})
    np.testing.assert_array_equal(read(make_stream(ahead), 96, 30), read(make_stream(data), 96, 30))
    batch = BatchSection(global_batch_size=48, micro_batch_size=48)
    with pytest.raises(DataError, match=r"vocab_size is 20,000"):
        next(open_stream(ahead, batch, seed=1, vocab_size=20_000).steps(0))


def test_a_growing_batch_reads_the_same_rows(data):
    batch = BatchSection.model_validate(
        {
            "global_batch_size": 48,
            "micro_batch_size": 4,
            "ramp": [{"until_tokens": 200, "global_batch_size": 8}, {"until_tokens": 600, "global_batch_size": 24}],
        }
    )
    streams = [open_stream(data, batch, seed=1, vocab_size=VOCAB_SIZE, rank=rank, world_size=2) for rank in (0, 1)]
    walks, rows, cursors = [stream.steps(0) for stream in streams], [], [0]
    for _ in range(8):
        halves = [next(walk) for walk in walks]
        rows += [rows_of(batches) for batches, _ in halves]
        assert halves[0][1] == halves[1][1]
        again, after = streams[0].step(cursors[-1])
        np.testing.assert_array_equal(rows_of(again), rows[-2])
        cursors.append(after)
    # Rows of 8 tokens: 25 of them reach 200 tokens, 75 reach 600.
    assert np.diff(cursors).tolist() == [8, 8, 8, 8, 24, 24, 48, 48]
    plain = read(make_stream(data), 0, 4).reshape(192, -1)
    np.testing.assert_array_equal(np.concatenate(rows), plain[: cursors[-1]])


def test_describe_counts_rows_and_epochs(data):
    lines = make_stream(data, 60).describe(11 * 60).splitlines()
    assert lines[0] == f"{data.datasets[0].path}: 499 rows of 8 tokens, 13.6% of the run, 0.18 epochs"
    assert lines[1] == f"{data.datasets[1].path}: 187 rows of 8 tokens, 2.7% of the run, 0.10 epochs"
    assert lines[2] == f"{data.datasets[2].path}: 87 rows of 8 tokens, 83.6% of the run, 6.34 epochs"


def test_datasets_of_different_tokenizers_are_refused(data, tmp_path):
    other = write_dataset(tmp_path / "other", 0, 1000, fingerprint="e" * 64)
    datasets = (*data.datasets, data.datasets[0].model_copy(update={"path": other}))
    with pytest.raises(DataError, match=f"{other}: .* tokenizer e{{16}}, but .*c0 with f{{16}}; .* --tokenizer"):
        make_stream(data.model_copy(update={"datasets": datasets, "mixture_schedule": ()}))


def test_start_and_resume_cost_the_same_for_any_number_of_rows():
    """The shard is virtual: all its tokens are one number in memory."""
    peaks = []
    for count in [10**6, *(10**exponent for exponent in range(6, 13))]:
        tokens = np.broadcast_to(np.uint16(7), count * 2048 + 1)
        shard = SimpleNamespace(prefix=Path("corpus/shard"), tokens=tokens, token_count=tokens.size)
        tracemalloc.start()
        rows = Rows([[shard]], 2048, vocab_size=100)
        order = Order(np.array([count]), np.array([1], np.uint64))
        stream = Stream(rows, order, Mixture([Phase(0, [1])]), global_batch_size=16, micro_batch_size=16)
        batches, _ = next(stream.steps(count * 9 // 10))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows.count_K.tolist() == [count]
        assert batches[0].tokens_BT.shape == (16, 2048)
    del peaks[0]  # numpy loads some of itself at first use
    assert max(peaks) < 1.1 * min(peaks), f"bytes at the start: {peaks}"


@pytest.mark.parametrize("rows", [1, 5, 16, 37, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("document_masking", [False, True])
def test_validation_rows_are_the_same_on_any_number_of_ranks(data, rows, world_size, document_masking):
    data = data.model_copy(update={"document_masking": document_masking})
    ranks = [
        open_validation(data, rows=rows, micro_batch_size=4, vocab_size=VOCAB_SIZE, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert len({tuple(batch.tokens_BT.shape for batch in batches) for batches in ranks}) == 1, (
        "collectives would not meet"
    )
    labels = np.concatenate([batch.labels_BT for batches in ranks for batch in batches])
    (whole,) = open_validation(data, rows=rows, micro_batch_size=1000, vocab_size=VOCAB_SIZE)
    assert sorted(labels[labels != IGNORE]) == sorted(whole.labels_BT[whole.labels_BT != IGNORE])
    assert len(whole.tokens_BT) == {1000: 49 + 18 + 8}.get(rows, rows)
