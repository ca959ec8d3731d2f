"""`python -m tasks embed`: the same rows whatever the format, the ranks and the kills."""

import gzip
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers

from config import ConfigError, DataError
from data.documents import ReadOptions
from data.sources import plan
from tasks.checkpoints import load_model
from tasks.embed import check_out, count_too_long
from tasks.embed_parts import Parts, chunks, weights_hash
from tasks.embedding import Embedder
from tests import forked
from tests.conftest import environment
from tests.ranks import free_port, rank_environ
from tests.tasks.hugging_face import BERT, save
from tests.workers.embed import CHUNK_TEXTS, embed

TEXTS = [" ".join(random.Random(number).choices(["word", "Größe", "a"], k=number % 17)) for number in range(60)]
CHUNKS = -(-len(TEXTS) // CHUNK_TEXTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(folder, transformers.BertModel, BERT)
    return folder


@pytest.fixture(scope="module")
def expected(model) -> torch.Tensor:
    return Embedder(load_model(model, torch.device("cpu"))).encode(TEXTS)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"name": f"n{n}", "text": text}) + "\n" for n, text in enumerate(TEXTS)))
    return path


def start(files: Path, *arguments, ranks: int = 1, **options):
    """Start the command on several ranks; their processes."""
    port = str(free_port())
    environs = [rank_environ(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
    return [
        forked.start(files / str(rank), environment() | environ, embed, list(map(str, arguments)), *options.values())
        for rank, environ in enumerate(environs)
    ]


def run(files: Path, *arguments, ranks: int = 1, **options) -> tuple[list[int], str, str]:
    """Exit codes of all ranks, what rank 0 printed, and what all said on stderr."""
    files.mkdir(exist_ok=True)
    codes = [forked.finish(process, 60) for process in start(files, *arguments, ranks=ranks, **options)]
    errors = "".join((files / f"{rank}.err").read_text() for rank in range(ranks))
    return codes, (files / "0.out").read_text(), errors


def vectors(path: Path) -> torch.Tensor:
    column = pyarrow.parquet.read_table(path)["embedding"].combine_chunks()
    return torch.from_numpy(column.flatten().to_numpy().copy()).view(len(column), -1)


def test_killed_and_repeated_it_computes_nothing_twice(model, source, expected, tmp_path):
    out, written = tmp_path / "out.parquet", tmp_path / "written"
    command = (model, source, "--out", out, "--id-field", "name", "--keep-text")
    assert run(tmp_path / "first", *command, written=written, kill_after=3)[0] == [-9]
    assert not out.exists()
    codes, _, errors = run(tmp_path / "other", *command, "--dimensions", "4")
    assert codes == [2] and "unfinished output with another dimensions: repeat that command" in errors
    codes, _, errors = run(tmp_path / "refused", *command, "--too-long", "refuse")
    assert codes == [2] and "texts that were cut: give --too-long cut" in errors
    codes, said, errors = run(tmp_path / "second", *command, written=written)
    assert codes == [0], errors
    assert f"{out}: 60 vectors of 32 dimensions (mean pooling, length 1); " in said
    assert sorted(map(int, written.read_text().split())) == list(range(CHUNKS))
    table = pyarrow.parquet.read_table(out)
    assert table["id"].to_pylist() == [f"n{number}" for number in range(60)] and table["text"].to_pylist() == TEXTS
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 32)
    assert (vectors(out) - expected).abs().max() <= 1e-6
    about = json.loads(table.schema.metadata[b"groundwork"])
    trained = load_model(model, torch.device("cpu"))
    assert (about["weights"], about["pooling"], about["texts"]) == (weights_hash(trained.model), "mean", 60)
    long = sum(len(row) > 64 for row in Embedder(trained).tokenize(TEXTS))
    assert about["cut"] == long > 0 and f"{long} texts were longer than 64 tokens and cut" in said
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out.parquet"]
    codes, _, errors = run(tmp_path / "third", *command)
    assert codes == [2] and "out.parquet exists already: remove it, or give another name" in errors


def test_two_ranks_share_the_texts_and_what_a_killed_one_left(model, source, expected, tmp_path):
    out, written = tmp_path / "out.npy", tmp_path / "written"
    command = (model, source, "--out", out)
    assert run(tmp_path / "first", *command, written=written, kill_after=2)[0] == [-9]
    codes, _, errors = run(tmp_path / "second", *command, ranks=2, written=written)
    assert codes == [0, 0], errors
    assert sorted(map(int, written.read_text().split())) == list(range(CHUNKS))
    array = np.load(out, mmap_mode="r")
    assert array.dtype == np.float32 and np.abs(array - expected.numpy()).max() <= 1e-6


def test_a_text_that_is_refused_is_told_once_by_all_ranks(model, source, tmp_path):
    codes, _, errors = run(
        tmp_path / "files", model, source, "--out", tmp_path / "out.npy", "--too-long", "refuse", ranks=2
    )
    assert codes == [2, 2] and errors.count("more than 64: shorten it") == 1, errors


def test_every_kind_of_file_is_read(model, expected, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS[:20])
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[20:40]}), folder / "b.parquet", row_group_size=7)
    (folder / "c.txt").write_text("".join(text + "\n" for text in TEXTS[40:]))
    out = tmp_path / "out.npz"
    codes, _, errors = run(tmp_path / "files", model, folder, "--out", out)
    assert codes == [0], errors
    arrays = np.load(out)
    assert arrays["ids"].tolist() == list(range(60)) and json.loads(str(arrays["about"]))["pooling"] == "mean"
    assert np.abs(arrays["embeddings"] - expected.numpy()).max() <= 1e-6


def test_an_error_is_told_once_by_all_ranks(model, source, tmp_path):
    with source.open("a") as file:
        file.write('{"text": 5}\n')
    codes, _, errors = run(tmp_path / "files", model, source, "--out", tmp_path / "out.npy", ranks=2)
    assert codes == [2, 2] and errors.count("texts.jsonl:61: field 'text' is int, not text") == 1
    assert not (tmp_path / ".out.npy.partial").exists()


@pytest.mark.parametrize(
    "name, id_field, keep_text, message",
    [
        ("out.csv", "", False, r"unknown kind '.csv'; known are .parquet, .npy and .npz"),
        ("out.npy", "id", False, "a .npy file has no place for ids: give a .npz or .parquet"),
        ("out.npz", "", True, r"only a .parquet file has a place for texts"),
    ],
)
def test_an_output_that_cannot_hold_it_is_refused(name, id_field, keep_text, message):
    with pytest.raises(ConfigError, match=message):
        check_out(Path(name), id_field, keep_text)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", '{"text": "x"}\n', r"a\.jsonl:1: field 'id' is None, not an id .* --id-field"),
        ("a.jsonl", '{"text": "x", "id": 1.5}\n', r"a\.jsonl:1: field 'id' is 1\.5, not an id"),
        ("a.txt", "x\n", r"a\.txt: has no fields, so no 'id': leave --id-field out"),
        ("a.parquet", None, r"a\.parquet: no column 'id'; there are 'text': choose with --id-field"),
    ],
)
def test_texts_without_the_ids_asked_for_are_refused(name, content, message, tmp_path):
    if content is None:
        pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / name)
    else:
        (tmp_path / name).write_text(content)
    reading = ReadOptions(txt_documents="line", id_field="id")
    with pytest.raises(DataError, match=message):
        list(chunks(plan([str(tmp_path / name)], reading), reading))


@pytest.mark.parametrize(
    "ids, message", [([1, None], "a text without an id: fill column 'id'"), ([0.5], "is double, not ids")]
)
def test_columns_that_name_no_text_are_refused(ids, message, tmp_path):
    path = str(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"] * len(ids), "id": ids}), path)
    reading = ReadOptions(id_field="id")
    with pytest.raises(DataError, match=message):
        list(chunks(plan([path], reading), reading))


def test_too_long_texts_are_counted_or_refused(tmp_path):
    chunk = SimpleNamespace(first=100, documents=[SimpleNamespace(id="a"), SimpleNamespace(id="b")])
    assert count_too_long([[1] * 5, [1] * 9], chunk, 5, refuse=False) == 1
    with pytest.raises(DataError, match=r"text 101 \(id b\) has 9 tokens, more than 5: shorten it, raise --max-tokens"):
        count_too_long([[1] * 5, [1] * 9], chunk, 5, refuse=True)


def test_inputs_that_changed_meanwhile_are_noticed(tmp_path):
    parts = Parts(tmp_path / "out.npy", 2, keep_text=False, named=False)
    parts.folder.mkdir()
    parts.write(SimpleNamespace(number=0, first=0, documents=[SimpleNamespace(id="")]), np.zeros((1, 2), "f4"), 0)
    with pytest.raises(DataError, match="had 2 texts at the start and 1 now: they changed meanwhile"):
        parts.join(2, {"dimensions": 2})
