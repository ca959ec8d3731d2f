"""Every kind of source gives its documents, whole and once, however it is cut into units."""

import gzip
import json
import unicodedata

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

import data.documents
import data.sources
from config import DataError
from data.clean import clean, document_hash, is_valid
from data.documents import Document, ReadOptions, read, read_all
from data.sources import plan
from data.stdlib import docstrings, python_files, topics


def texts(*names, **options):
    """All documents of some sources, in order; problems in angle brackets."""
    reading = ReadOptions(**options)
    units = [unit for source in plan([str(name) for name in names], reading) for unit in source.units]
    return [d.text if not d.problem else f"<{d.problem}>" for unit in units for d in read(unit, reading)]


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.fixture
def small_units(monkeypatch):
    """Cut files that a test can afford to write."""
    monkeypatch.setattr(data.sources, "SMALLEST_UNIT", 40)
    monkeypatch.setattr(data.chunks, "CHUNK_BYTES", 64)


STORY = "one\nstill one\n\n\ntwo\r\n \nthree, höher\n"


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("file", [STORY]),
        ("paragraph", ["one\nstill one", "two", "three, höher"]),
        ("line", ["one", "still one", "", "", "two", " ", "three, höher"]),
    ],
)
def test_a_text_file_is_one_document_or_its_paragraphs_or_lines(tmp_path, mode, expected):
    (tmp_path / "a.txt").write_bytes(STORY.encode())
    assert texts(tmp_path / "a.txt", txt_documents=mode) == expected


def test_a_byte_order_mark_is_no_text_and_latin_1_is_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffhöher".encode())
    (tmp_path / "b.txt").write_bytes("höher".encode("latin-1"))
    assert texts(tmp_path) == ["höher", "<not UTF-8>"]


@pytest.mark.parametrize("mode", ["paragraph", "line"])
def test_cutting_a_file_into_units_changes_no_document(tmp_path, small_units, monkeypatch, mode):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" + "\n" * (i % 3) + "x" * (i * 7 % 90) + "\n" for i in range(100)))
    cut = texts(path, txt_documents=mode)
    assert len(plan([str(path)], ReadOptions(txt_documents=mode))[0].units) > 10
    monkeypatch.setattr(data.sources, "SMALLEST_UNIT", 1 << 20)
    assert cut == texts(path, txt_documents=mode)


@pytest.mark.parametrize("pack", [None, "gz", "zst"])
def test_json_lines_packed_or_not(tmp_path, small_units, pack):
    records = [{"text": f"document {i} " * (i % 5 + 1), "n": i} for i in range(50)]
    half = len(jsonl(*records[:25]))
    content = jsonl(*records) + b"\n\n"
    path = tmp_path / (f"a.jsonl.{pack}" if pack else "a.jsonl")
    packing = {None: bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}[pack]
    path.write_bytes(packing(content[:half]) + packing(content[half:]))  # two gzip members, two zstd frames
    assert texts(path) == [record["text"] for record in records]


@pytest.mark.parametrize("pack", ["gz", "zst"])
def test_a_packed_file_cut_short_is_an_error_not_a_short_corpus(tmp_path, pack):
    content = jsonl(*({"text": str(i**9)} for i in range(3000)))
    packed = gzip.compress(content) if pack == "gz" else zstandard.ZstdCompressor().compress(content)
    path = tmp_path / f"a.jsonl.{pack}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"a\.jsonl\.{pack}: damaged or cut short"):
        texts(path)


def test_a_bad_line_is_named_by_its_number_in_the_whole_file(tmp_path, small_units):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(*({"text": f"{i}"} for i in range(30))) + b'{"text": oops}\n' + jsonl({"text": "last"}))
    with pytest.raises(DataError, match=r"a\.jsonl:31: not JSON \(Expecting value at column 10\).*--skip-bad"):
        texts(path)
    assert texts(path, skip_bad_lines=True)[-2:] == ["<malformed line>", "last"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"body": "x", "title": "y"}, r":1: no field 'text'; there are 'body', 'title': choose with --text-field"),
        ({"text": 5}, r":1: field 'text' is int, not text"),
        (["x"], r":1: a JSON list where an object with a 'text' field belongs"),
    ],
)
def test_a_record_without_text_names_the_fields_there_are(tmp_path, record, message):
    (tmp_path / "a.jsonl").write_bytes(jsonl(record))
    with pytest.raises(DataError, match=message):
        texts(tmp_path / "a.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_another_encoding_is_named_and_a_byte_order_mark_is_none(tmp_path, encoding):
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}\n'.encode(encoding))
    with pytest.raises(DataError, match=r"a\.jsonl:1: not UTF-8 text: save the file as UTF-8"):
        texts(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").write_bytes('{"text": "é"}\n'.encode("utf-8-sig"))
    assert texts(tmp_path / "a.jsonl") == ["é"]


def test_half_a_character_is_left_out_of_a_corpus_and_named_where_each_text_counts(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "whole"}, {"text": "cut \ud83d"}))
    assert clean(texts(tmp_path / "a.jsonl")[1]) == "cut "
    (source,) = plan([str(tmp_path / "a.jsonl")], ReadOptions())
    with pytest.raises(DataError, match=r"a\.jsonl: text 1 \(counted from 0\) is cut within a character"):
        list(read_all(source.units, ReadOptions()))


def test_a_json_null_is_an_empty_document(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": None}))
    assert texts(tmp_path / "a.jsonl") == [""]


def test_parquet_by_row_groups(tmp_path, small_units):
    import pyarrow
    import pyarrow.parquet

    column = [f"row {i}" for i in range(1000)]
    column[7] = None
    table = pyarrow.table({"body": column, "n": list(range(1000))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert len(plan([str(tmp_path)], ReadOptions("body"))[0].units) == 4
    assert texts(tmp_path, text_field="body") == [text or "<no text>" for text in column]
    with pytest.raises(DataError, match="no column 'text'; there are 'body', 'n'"):
        texts(tmp_path)
    with pytest.raises(DataError, match="column 'n' is int64, not text"):
        texts(tmp_path, text_field="n")


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"a\.parquet: not a whole Parquet file"):
        texts(tmp_path)


def test_a_folder_is_read_sorted_without_what_is_no_text(tmp_path):
    for name in ("b/2.txt", "b/1.md", "a.jsonl", "c.py", ".git/config.txt", "__pycache__/x.py", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(jsonl({"text": name}) if name.endswith("jsonl") else name.encode())
    assert texts(tmp_path) == ["a.jsonl", "c.py", "b/1.md", "b/2.txt"]
    assert plan([str(tmp_path)], ReadOptions())[0].skipped == {".png": 1}


def test_a_dataset_inside_its_source_is_not_read(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    assert texts(tmp_path) == ["a"]


def test_small_files_share_a_unit(tmp_path, small_units):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text("0123456789")
    units = plan([str(tmp_path)], ReadOptions())[0].units
    assert [len(unit.paths) for unit in units] == [4] * 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.txt", "no such file or folder"),
        ("empty", r"no file of a known kind in this folder \(it is empty\)"),
        ("a.pdf", r"a file of unknown kind '\.pdf'"),
        ("pictures", r"no file of a known kind in this folder \(\.png 1\)"),
    ],
)
def test_a_source_that_is_none_is_explained(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").touch()
    (tmp_path / "a.pdf").touch()
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_a_huge_document_asks_for_another_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(data.documents, "LONGEST_DOCUMENT", 1 << 20)
    (tmp_path / "a.txt").write_text("x" * (1 << 20) + "y")
    with pytest.raises(DataError, match=r"one document of more than 1 MiB; choose --txt-documents paragraph"):
        texts(tmp_path)
    with pytest.raises(DataError, match=r"a line of more than 1 MiB"):
        texts(tmp_path, txt_documents="line")


def test_units_add_up_to_the_bytes_of_the_source(tmp_path, small_units):
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": "x" * (i % 60)} for i in range(100))))
    source = plan([str(tmp_path)], ReadOptions())[0]
    told = []
    for unit in source.units:
        list(read(unit, ReadOptions(), told.append))
    assert sum(told) == sum(unit.size for unit in source.units) == source.entry.bytes


def test_the_standard_library_is_a_corpus():
    files = python_files()
    names = {path.name for path in files}
    assert {"argparse.py", "inspect.py", "this.py"} <= names
    assert not any("site-packages" in path.parts or path.name == "topics.py" for path in files)
    documentation = list(docstrings())
    assert any("math.hypot" in text and "Euclidean" in text for text in documentation)
    assert documentation == list(docstrings())
    assert any("lambda" in text for text in topics())


def test_python_sources_are_decoded_as_they_declare(tmp_path):
    files = {
        "a.py": "# coding: latin-1\nx = 'höher'\n".encode("latin-1"),
        "b.py": "x = 'höher'\n".encode("latin-1"),
        "c.py": b"# coding: no-such-codec\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    unit = data.documents.Unit("python", tuple(str(tmp_path / name) for name in files))
    first, *others = read(unit, ReadOptions())
    assert first == Document("# coding: latin-1\nx = 'höher'\n")
    assert [document.problem for document in others] == ["not in its declared encoding"] * 2


def test_a_local_folder_through_the_datasets_library(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_bytes(jsonl({"body": "one"}, {"body": "two"}))
    (tmp_path / "train" / "b.jsonl").write_bytes(jsonl({"body": "three"}))
    assert texts(f"hf:{tmp_path}", text_field="body") == ["one", "two", "three"]
    with pytest.raises(DataError, match="no field 'text'; there are 'body'"):
        texts(f"hf:{tmp_path}")
    with pytest.raises(DataError, match="`datasets` cannot load it"):
        texts(f"hf:{tmp_path}::nosplit")
    with pytest.raises(DataError, match="write hf:NAME_OR_PATH"):
        texts("hf:a:b:c:d")


@given(st.text())
@example("a\r\r\n\r\x00\nb")
def test_cleaning_is_idempotent_and_leaves_encodable_text(text):
    once = clean(text)
    assert clean(once) == once
    once.encode()
    assert "\x00" not in once
    assert unicodedata.is_normalized("NFC", once)


def test_cleaning_rules():
    assert clean("a\r\nb\x00\ud800c") == "a\nbc"
    assert clean("e\u0301") == "é"
    assert clean("ﬁ", "nfkc") == "fi"
    assert clean("e\u0301", "none") == "e\u0301"
    assert clean(" \n\t") == ""


def test_the_split_is_a_share_of_hashes():
    hashes = [document_hash(str(i).encode()) for i in range(20_000)]
    share = sum(is_valid(hashed, 0.1) for hashed in hashes) / len(hashes)
    assert share == pytest.approx(0.1, abs=0.01)
    assert not any(is_valid(hashed, 0.0) for hashed in hashes)
    assert all(is_valid(hashed, 0.2) for hashed in hashes if is_valid(hashed, 0.1))
