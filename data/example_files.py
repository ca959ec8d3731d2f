"""Readers of labelled examples: jsonl, csv, tsv, CoNLL, and folders of `datasets`."""

import csv
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import xxhash

from config import DataError
from data.records import fields_of

Record = tuple[str, dict[str, Any]]
"""Where an example stands (`file:line`), and its fields."""

WORDS, TAGS = "text", "label"
"""Fields of a CoNLL sentence."""
DOCUMENT = "-DOCSTART-"
UTF8 = "utf-8-sig"
"""With or without a byte order mark."""
READ_BYTES = 1 << 22
LONGEST_FIELD = 2**31 - 1
"""Bytes of a field of .csv and .tsv."""


def read_records(path: str) -> Iterator[Record]:
    """The examples of a file, in order. Raises DataError that names the file and the line."""
    source = Path(path)
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise DataError(
            f"{path}: no such file of examples; one of a hub becomes a folder by datasets.load_dataset(NAME, split=...)"
            ".save_to_disk(FOLDER)"
        )
    read = READERS.get(source.suffix.lower())
    if read is None:
        raise DataError(
            f"{path}: examples are read from {', '.join(READERS)} files and folders that `datasets` saved, not from "
            f"{source.suffix or 'files without an ending'}"
        )
    if not os.access(source, os.R_OK):
        raise DataError(f"{path}: Permission denied; it holds labelled examples")
    return read(source)


def content_hash(path: str) -> str:
    """Of a file, or of the files in a folder, in hex. Raises DataError if there is none."""
    source, digest = Path(path), xxhash.xxh3_128()
    files = sorted(file for file in source.rglob("*") if file.is_file()) if source.is_dir() else [source]
    for file in files:
        try:
            with file.open("rb") as content:
                while part := content.read(READ_BYTES):
                    digest.update(part)
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}; it holds labelled examples") from None
    return digest.hexdigest()


def _read_jsonl(path: Path) -> Iterator[Record]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", fields_of(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}: mend the line") from None


def _read_table(path: Path, delimiter: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> Iterator[Record]:
    with path.open(encoding=UTF8, newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        first = 1
        try:
            names = next(filter(None, reader), [])
            if len(set(names)) < len(names):
                raise DataError(
                    f"{path}:{reader.line_num}: the header names a column twice: {', '.join(names)}; rename one"
                )
            first = reader.line_num + 1
            for row in reader:
                if len(row) not in (0, len(names)):
                    raise DataError(
                        f"{path}:{first}: {len(row)} columns, but the header has {len(names)} ({', '.join(names)}): "
                        "mend the line"
                    )
                if row:
                    yield f"{path}:{first}", dict(zip(names, row, strict=True))
                first = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}:{first}: {error}: quotes within a quoted field are doubled; mend the line"
            ) from None
        except UnicodeDecodeError:
            raise _not_utf8(path) from None


def _read_tsv(path: Path) -> Iterator[Record]:
    """Quotes are ordinary characters, unless the whole file is right with quotes as CSV has them."""
    try:
        quoted = all(_is_one(record) for _, record in _read_table(path, "\t"))
    except DataError:
        quoted = False
    return _read_table(path, "\t", csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)


def _is_one(record: dict[str, str]) -> bool:
    """Whether quotes do not hold lines together each of which has all columns itself."""
    lines = "\t".join(record.values()).split("\n")
    return len(lines) == 1 or any(line.count("\t") != len(record) - 1 for line in lines)


def _read_conll(path: Path) -> Iterator[Record]:
    """Sentences of words, from the first column, and tags, from the last one."""
    words: list[str] = []
    tags: list[str] = []
    columns = first = 0
    for number, line in chain(text_lines(path), [(0, "")]):
        cells = line.split("\t") if "\t" in line else line.split()
        if not any(cells):
            if words:
                yield f"{path}:{first}", {WORDS: words, TAGS: tags}
            words, tags = [], []
            continue
        if cells[0] == DOCUMENT:
            continue
        columns = columns or len(cells)
        if len(cells) != columns or columns < 2:
            raise DataError(
                f"{path}:{number}: {len(cells)} columns, expected {max(columns, 2)} as in the lines above, the word first "
                "and its tag last: mend the line"
            )
        first = first if words else number
        words.append(cells[0])
        tags.append(cells[-1].strip())


def _read_folder(path: Path) -> Iterator[Record]:
    """What `save_to_disk` wrote, labels by their names."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{path}: a folder of `datasets` needs the package: pip install datasets") from None
    try:
        data = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path}: not a folder that `datasets` saved: {error}") from None
    if isinstance(data, datasets.DatasetDict):
        splits = ", ".join(f"{path}/{split}" for split in data)
        raise DataError(f"{path}: holds several splits: name one of {splits}")
    names = {name: getattr(getattr(kind, "feature", kind), "names", None) for name, kind in data.features.items()}
    for number, row in enumerate(data):
        yield f"{path} row {number}", {name: _named(value, names[name]) for name, value in row.items()}


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    return None if value is None or value < 0 else names[value]  # -1 is what `datasets` has where there is no label


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbers and texts of a file's lines. Raises DataError if it is not UTF-8."""
    with path.open(encoding=UTF8) as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError:
            raise _not_utf8(path) from None


def _not_utf8(path: Path) -> DataError:
    """Names the first line that is not: a text file decodes many lines at once."""
    with path.open("rb") as file:
        number = next(number for number, line in enumerate(file, start=1) if not _is_utf8(line))
    return DataError(f"{path}:{number}: not UTF-8 text: save the file as UTF-8")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": _read_tsv,
    ".conll": _read_conll,
    ".iob2": _read_conll,
    ".bio": _read_conll,
    ".txt": _read_conll,
}
