"""`verify` finds every kind of damage and says where it is."""

import json

import pytest

from config import DataError
from data.documents import ReadOptions
from data.manifest import Manifest, ShardEntry
from data.prepare import prepare
from data.resume import PrepareOptions
from data.shard import ShardWriter, token_dtype
from data.verify import verify


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Lines of text as bytes, checked in blocks of 64 bytes."""
    monkeypatch.setattr("data.manifest.BLOCK_BYTES", 64)
    (tmp_path / "a.txt").write_text("\n".join(f"line number {i}" for i in range(40)))
    options = PrepareOptions(
        (str(tmp_path / "a.txt"),),
        tmp_path / "out",
        tokenizer="bytes",
        split_valid=0.2,
        read=ReadOptions(txt_documents="line"),
    )
    prepare(options, lambda line: None)
    return tmp_path / "out"


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_an_intact_dataset_passes_with_its_speed(dataset):
    result = verify(dataset)
    assert result.problems == ()
    assert str(result).startswith("intact: 2 shards, ")
    assert "B/s)" in str(result)


@pytest.mark.parametrize("position", [0, 63, 64, 200, -1])
def test_a_flipped_byte_names_file_block_and_bytes(dataset, position):
    path = dataset / "train-00000.bin"
    size = path.stat().st_size
    flip(path, position)
    block = position % size // 64
    last = min(block * 64 + 63, size - 1)
    (problem,) = verify(dataset).problems
    assert problem.startswith(
        f"{path}: block {block} (bytes {block * 64:,} to {last:,}) differs from when it was written"
    )


def test_every_damaged_block_is_named(dataset):
    flip(dataset / "train-00000.bin", 10)
    flip(dataset / "train-00000.bin", 130)
    flip(dataset / "valid-00000.bin", 0)
    assert [problem.split(" (")[0].rsplit("/")[-1] for problem in verify(dataset).problems] == [
        "train-00000.bin: block 0",
        "train-00000.bin: block 2",
        "valid-00000.bin: block 0",
    ]


def test_a_flipped_byte_of_an_index_is_found(dataset):
    flip(dataset / "train-00000.idx", 40)
    assert "train-00000.idx: differs from when it was written" in verify(dataset).problems[0]


def test_missing_and_truncated_files_are_found(dataset):
    (dataset / "valid-00000.bin").unlink()
    path = dataset / "train-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    first, second = verify(dataset).problems
    assert f"{path}: {path.stat().st_size:,} bytes, but train-00000.idx says {path.stat().st_size + 2:,}" in first
    assert "valid-00000.bin: missing" in second


def test_a_shard_of_another_dataset_is_found(dataset):
    with ShardWriter(dataset / "valid-00000", token_dtype(300)) as writer:
        writer.add([1, 2, 3])
    problems = "\n".join(verify(dataset).problems)
    assert "valid-00000.idx: 3 tokens of uint16, but manifest.json says" in problems


def test_a_token_outside_the_vocabulary_is_found(dataset):
    """Written so from the start, its checksum is right; only the vocabulary gives it away."""
    with ShardWriter(dataset / "valid-00000", token_dtype(300)) as writer:
        writer.add([1, 257, 2])
    manifest = Manifest.load(dataset)
    entry = ShardEntry.of(dataset / "valid-00000", 3)
    Manifest(**{**manifest.model_dump(), "splits": {**manifest.splits, "valid": (entry,)}}).save(dataset)
    (problem,) = verify(dataset).problems
    assert "valid-00000.bin: block 0 (bytes 0 to 5) holds token 257, but the vocabulary has 257" in problem


def test_another_tokenizer_is_found(dataset):
    path = dataset / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["added_tokens"][0]["lstrip"] = True
    path.write_text(json.dumps(spec))
    assert "tokenizer.json: fingerprint" in verify(dataset).problems[0]


def test_without_a_manifest_there_is_nothing_to_compare_with(dataset):
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match="not a finished dataset"):
        verify(dataset)
