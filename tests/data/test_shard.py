"""Shards and manifests against an independent reading of the MMIDIDX layout, and damaged in every way."""

import struct

import numpy as np
import pytest

from config import DataError
from data.dataset import load_tokenizer, open_dataset
from data.manifest import Manifest, ShardEntry
from data.shard import Shard, ShardWriter, token_dtype
from data.tokenizer import byte_tokenizer


def write(prefix, documents, vocab_size=300):
    with ShardWriter(prefix, token_dtype(vocab_size)) as writer:
        for ids in documents:
            writer.add(ids)


def parse(prefix):
    """The layout as Megatron-LM defines it, read with struct alone."""
    idx, tokens = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    magic, version, code, sequences, bounds = struct.unpack_from("<9sQBQQ", idx)
    assert (magic, version) == (b"MMIDIDX\0\0", 1)
    position = 9 + 8 + 1 + 8 + 8
    lengths = struct.unpack_from(f"<{sequences}i", idx, position)
    pointers = struct.unpack_from(f"<{sequences}q", idx, position + 4 * sequences)
    starts = struct.unpack_from(f"<{bounds}q", idx, position + 12 * sequences)
    assert len(idx) == position + 12 * sequences + 8 * bounds
    letter, width = {8: ("H", 2), 4: ("i", 4)}[code]
    documents = [list(struct.unpack_from(f"<{n}{letter}", tokens, at)) for n, at in zip(lengths, pointers, strict=True)]
    return documents, list(starts), width, len(tokens)


@pytest.mark.parametrize(("vocab_size", "width"), [(300, 2), (65499, 2), (65500, 4), (200_000, 4)])
def test_layout_reads_back_with_an_independent_parser(tmp_path, vocab_size, width):
    documents = [[1, 2, 3], [vocab_size - 1], list(range(250))]
    write(tmp_path / "a", documents, vocab_size)
    assert parse(tmp_path / "a") == (documents, [0, 1, 2, 3], width, 254 * width)


def test_shard_shows_what_was_written(tmp_path):
    write(tmp_path / "a", [[1, 2, 3], np.array([7, 8])])
    shard = Shard.open(tmp_path / "a")
    assert (len(shard), shard.document_count, shard.dtype) == (5, 2, np.uint16)
    assert shard.tokens.tolist() == [1, 2, 3, 7, 8]
    assert (shard.lengths.tolist(), shard.pointers.tolist()) == ([3, 2], [0, 6])
    assert [shard.document(n).tolist() for n in range(2)] == [[1, 2, 3], [7, 8]]


def test_byte_positions_pass_the_range_of_int32(tmp_path):
    """Three documents of 2^30 tokens in a sparse file: the last begins at byte 2^32."""
    writer = ShardWriter(tmp_path / "a", np.dtype("<u2"))
    writer._lengths.extend([2**30] * 3)
    writer._bin.truncate(3 * 2**31)
    writer.close()
    shard = Shard.open(tmp_path / "a")
    assert shard.pointers.tolist() == [0, 2**31, 2**32]
    assert len(shard) == 3 * 2**30
    assert len(shard.document(2)) == 2**30


def test_looking_up_a_pointer_copies_nothing(tmp_path):
    write(tmp_path / "a", [[1]] * 1000)
    shard = Shard.open(tmp_path / "a")
    assert np.shares_memory(shard.pointers, shard._index_bytes)
    assert np.shares_memory(shard.lengths, shard._index_bytes)
    assert not shard.tokens.flags.owndata


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add([1])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nothing_has_its_name_before_it_is_whole(tmp_path):
    writer = ShardWriter(tmp_path / "a", np.dtype("<u2"))
    writer.add([1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin.tmp"]
    writer.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


@pytest.mark.parametrize("token", [-1, 65536])
def test_a_token_outside_the_type_is_never_wrapped_around(tmp_path, token):
    with pytest.raises(AssertionError), ShardWriter(tmp_path / "a", np.dtype("<u2")) as writer:
        writer.add(np.array([token]))


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: truncate(d / "a.bin", 7), r"a\.bin: 7 bytes, but a\.idx says 10"),
        (lambda d: (d / "a.bin").write_bytes(bytes(12)), r"a\.bin: 12 bytes, but a\.idx says 10"),
        (lambda d: (d / "a.bin").unlink(), r"a\.bin: missing"),
        (lambda d: (d / "a.idx").unlink(), r"a\.idx: no such shard index"),
        (lambda d: truncate(d / "a.idx", 20), r"a\.idx: 20 bytes, but the header alone has 34"),
        (lambda d: truncate(d / "a.idx", 60), r"a\.idx: 60 bytes, but its header says 82"),
        (lambda d: (d / "a.idx").write_bytes(b"x" * 82), r"a\.idx: not a Megatron MMIDIDX index"),
    ],
)
def test_a_damaged_shard_is_named_with_both_sizes(tmp_path, damage, message):
    write(tmp_path / "a", [[1, 2, 3], [4, 5]])
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        Shard.open(tmp_path / "a")


@pytest.fixture
def dataset(tmp_path):
    """A dataset of one training shard, made without `prepare`."""
    write(tmp_path / "train-00000", [[1, 2, 256], [3, 256]])
    tokenizer = byte_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    entry = ShardEntry.of(tmp_path / "train-00000", text_bytes=3)
    manifest = Manifest(
        tokens=5,
        documents=2,
        text_bytes=3,
        vocab_size=257,
        dtype="uint16",
        eod_id=256,
        tokenizer_fingerprint=tokenizer.fingerprint,
        sources=(),
        settings={},
        dropped={},
        splits={"train": (entry,), "valid": ()},
    )
    manifest.save(tmp_path)
    return tmp_path


def test_a_manifest_comes_back_as_it_was_saved(dataset):
    manifest = Manifest.load(dataset)
    manifest.save(dataset)
    assert Manifest.load(dataset) == manifest
    assert list(dataset.glob("*.tmp")) == []


def test_the_hash_depends_on_what_a_reader_gets_and_on_nothing_else(dataset):
    manifest = Manifest.load(dataset)
    entry = manifest.splits["train"][0]
    other = entry.model_copy(update={"block_checksums": ("0" * 16,)})
    moved = manifest.model_copy(update={"settings": {"a": 1}, "dropped": {"empty": 3}})
    assert Manifest(**moved.model_dump()).hash == manifest.hash
    for change in ({"eod_id": 0}, {"tokenizer_fingerprint": "x"}, {"splits": {"train": (other,), "valid": ()}}):
        assert Manifest(**{**manifest.model_dump(), **change}).hash != manifest.hash


def test_a_dataset_opens_without_reading_tokens(dataset):
    opened = open_dataset(dataset)
    assert (len(opened), opened.split, opened.manifest.eod_id) == (5, "train", 256)
    assert "tokens" not in vars(opened.shards[0])
    assert opened.shards[0].document(1).tolist() == [3, 256]


def save_with(dataset, **changes):
    manifest = Manifest.load(dataset)
    Manifest(**{**manifest.model_dump(), **changes}).save(dataset)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "manifest.json").unlink(), "not a finished dataset.*python -m data prepare"),
        (lambda d: truncate(d / "manifest.json", 50), r"manifest\.json: damaged or of another version"),
        (lambda d: truncate(d / "train-00000.bin", 4), r"train-00000\.bin: 4 bytes, but train-00000\.idx says 10"),
        (lambda d: write(d / "train-00000", [[1]]), r"train-00000\.idx: .*\('uint16', 1, 1\), but manifest\.json says"),
        (lambda d: save_with(d, splits={"train": ()}), "the train split is empty.*--split-valid"),
    ],
)
def test_a_damaged_dataset_is_explained(dataset, damage, message):
    damage(dataset)
    with pytest.raises(DataError, match=message):
        open_dataset(dataset)


def test_a_missing_dataset_comes_with_the_command_that_makes_it(tmp_path):
    with pytest.raises(DataError, match=r"no such folder; make it with: python -m data prepare SOURCE\.\.\. --out"):
        open_dataset(tmp_path / "none")


def test_a_foreign_tokenizer_is_refused_with_both_fingerprints(dataset):
    assert load_tokenizer(dataset).vocab_size == 257
    other = byte_tokenizer().spec.replace("<|endoftext|>", "<|end_of_text|>")
    (dataset / "tokenizer.json").write_text(other)
    ours = byte_tokenizer().fingerprint[:16]
    with pytest.raises(DataError, match=f"fingerprint [0-9a-f]{{16}}, but the dataset was written with {ours}"):
        load_tokenizer(dataset)
