"""Formats of labelled examples: what is read of good files, and what is said of bad ones, with file and line."""

import os
import re
from pathlib import Path

import pytest

from config import DataError
from data.example_files import read_records
from data.tags import iob2


def write(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def places(path: str) -> list[str]:
    return [where.removeprefix(path) for where, _ in read_records(path)]


def fields(path: str) -> list[dict]:
    return [fields for _, fields in read_records(path)]


def test_quotes_newlines_and_a_byte_order_mark_of_csv(tmp_path):
    path = write(tmp_path / "A.CSV", '\ufefftext,label\r\n"He said ""no"", twice,\nand left",a\r\n\r\nplain,b\r\n')
    assert fields(path) == [
        {"text": 'He said "no", twice,\nand left', "label": "a"},
        {"text": "plain", "label": "b"},
    ]
    assert places(path) == [":2", ":5"], "a record is where it begins"
    assert fields(write(tmp_path / "b.csv", "\r\ntext,label\r\na,b")) == [{"text": "a", "label": "b"}]


def test_quotes_of_tsv_are_those_of_a_table_or_ordinary_characters(tmp_path):
    quoted = write(tmp_path / "a.tsv", 'text\tlabel\n"two\nlines, a\ttab"\tx\n"a ""word"""\ty\n')
    assert [record["text"] for record in fields(quoted)] == ["two\nlines, a\ttab", 'a "word"']
    plain = write(tmp_path / "b.tsv", 'text\tlabel\n"Stop" he said\tx\n5" long\ty\n"\tz\n')
    assert [record["text"] for record in fields(plain)] == ['"Stop" he said', '5" long', '"']
    opened = write(tmp_path / "c.tsv", 'text\tlabel\n"Stop, he said\tx\nand left"\ty\n')
    assert [record["text"] for record in fields(opened)] == ['"Stop, he said', 'and left"'], "no line is lost"


def test_conll_2003_has_its_word_first_and_its_tag_last(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\n-DOCSTART- -X- -X- O\n\nPeter NNP B-NP B-PER\n"
    path = write(tmp_path / "train.txt", text)
    assert fields(path) == [
        {"text": ["EU", "rejects"], "label": ["B-ORG", "O"]},
        {"text": ["Peter"], "label": ["B-PER"]},
    ]
    assert places(path) == [":3", ":8"]


def test_folders_of_datasets_have_labels_by_name(tmp_path):
    datasets = pytest.importorskip("datasets")
    label, tag = datasets.ClassLabel(names=["neg", "pos"]), datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "tags": datasets.Sequence(tag)})
    rows = {"text": ["a", "b"], "label": [1, -1], "tags": [[0, 1], [0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    assert fields(str(tmp_path / "saved")) == [
        {"text": "a", "label": "pos", "tags": ["O", "B-X"]},
        {"text": "b", "label": None, "tags": ["O"]},  # -1 is how `datasets` spells that there is none
    ]
    splits = datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["a"]}))
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"several splits: name one of .*splits/train"):
        fields(str(tmp_path / "splits"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.conll", "EU B-ORG\nrejects VBZ O\n", "a.conll:2: 3 columns, expected 2 as in the lines above"),
        ("a.conll", "EU B-ORG\n\nrejects\n", "a.conll:3: 1 columns, expected 2"),
        ("a.csv", "text,label\na,x\nb,c,y\n", "a.csv:3: 3 columns, but the header has 2 (text, label)"),
        ("a.csv", 'text,label\n"a\nb",x\nc\n', "a.csv:4: 1 columns"),
        ("a.csv", 'text,label\na,x\n"b,y\nc,x\n', "a.csv:3: unexpected end of data: quotes within a quoted field are doubled"),
        ("a.csv", 'text,label\n"a" b,x\n', "a.csv:2: ',' expected after '\"': quotes within"),
        ("a.csv", "text,text\na,x\n", "a.csv:1: the header names a column twice"),
        ("a.tsv", "text\tlabel\na\tx\nb\n", "a.tsv:3: 1 columns, but the header has 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', "a.jsonl:2: a JSON list, not an object with fields"),
        ("a.jsonl", '{"text": "a \\ud83d b"}\n', "a.jsonl:1: holds '\\ud83d', half of a character"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: JSON nested too deep"),
        ("a.csv", "\n\ntext,text\na,x\n", "a.csv:3: the header names a column twice"),
        ("a.parquet", "", "a.parquet: examples are read from .jsonl, .csv, .tsv"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(DataError, match=re.escape(message)):
        fields(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.conll"])
def test_text_that_is_not_utf_8_is_named(tmp_path, name):
    line = '{"text": "tea", "label": "x"}\n' if name == "a.jsonl" else "tea,x\n" if name == "a.csv" else "tea\tx\n"
    path = write(tmp_path / name, 5000 * line + line.replace("tea", "café"), encoding="latin-1")
    with pytest.raises(DataError, match=rf"{name}:5001: not UTF-8 text: save the file as UTF-8"):
        fields(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.csv", "text,label\n")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DataError, match=r"a\.csv: Permission denied; it holds labelled examples"):
        fields(path)


def test_a_name_of_a_hub_is_no_file(tmp_path):
    with pytest.raises(
        DataError, match=r"imdb: no such file of examples; .*load_dataset\(NAME.*save_to_disk\(FOLDER\)"
    ):
        read_records("imdb")


def test_iob1_is_told_from_iob2_and_becomes_it():
    iob1 = ["I-PER", "I-PER", "B-PER", "O", "I-LOC", "I-PER", "O"]
    assert iob2("a:1", iob1, "iob1") == ["B-PER", "I-PER", "B-PER", "O", "B-LOC", "B-PER", "O"]
    with pytest.raises(DataError, match=r"a:1: I-PER begins an entity, after O: in IOB2 B-PER does; .*--tags iob1"):
        iob2("a:1", iob1, "iob2")
    with pytest.raises(DataError, match="I-LOC begins an entity, after B-PER"):
        iob2("a:1", ["B-PER", "I-LOC"], "iob2")
    other = ["NOUN", "VERB", "O", "B-PER", "I-PER"]
    assert iob2("a:1", other, "iob2") == iob2("a:1", other, "iob1") == other
