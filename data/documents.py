"""Readers: from a unit of work to its documents, in order, holding one batch of them in memory."""

import io
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import DataError
from data.chunks import Advance, chunks
from data.records import HALF, id_of, parsed, text_of

TxtDocuments = Literal["file", "paragraph", "line"]
LONGEST_DOCUMENT = 256 << 20


@dataclass(frozen=True)
class Document:
    """A text, or the reason why one could not be read."""

    text: str
    problem: str = ""
    id: str = ""
    """Content of the id field, if one was asked for."""


@dataclass(frozen=True)
class Unit:
    """A piece of a source that one worker reads from end to end. What start and stop count depends on the reader."""

    reader: str
    paths: tuple[str, ...]
    start: int = 0
    stop: int = 0
    size: int = 0
    """Source bytes, for the progress bar; 0 if unknown."""


@dataclass(frozen=True)
class ReadOptions:
    text_field: str = "text"
    txt_documents: TxtDocuments = "file"
    skip_bad_lines: bool = False
    id_field: str = ""
    """Field or column that names each document, a text or a whole number; none by default."""


def read(unit: Unit, options: ReadOptions, advance: Advance = lambda size: None) -> Iterator[Document]:
    """The documents of a unit. Raises DataError that names the file, and the line where there are lines."""
    return READERS[unit.reader](unit, options, advance)


def read_all(units: Iterable[Unit], options: ReadOptions) -> Iterator[Document]:
    """The documents of units, those without text as empty ones. Raises DataError that names the first that cannot be read,
    and as `read`."""
    for unit in units:
        for number, document in enumerate(read(unit, options)):
            problem = document.problem or (
                "cut within a character (a lone surrogate)" if HALF.search(document.text) else ""
            )
            if problem not in ("", "no text"):
                if len(unit.paths) > 1:
                    where = unit.paths[number]
                else:
                    where = f"{unit.paths[0]}: text {number:,} (counted from 0)"
                    where += f" after byte {unit.start:,}" if unit.start else ""
                raise DataError(f"{where} is {problem}; mend or remove it")
            yield document


def read_files(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """Each file one document."""
    for path in unit.paths:
        content = bytearray()
        for chunk in chunks(path, advance):
            content += chunk
            if len(content) > LONGEST_DOCUMENT:
                raise DataError(
                    f"{path}: one document of more than {LONGEST_DOCUMENT >> 20} MiB; "
                    "choose --txt-documents paragraph or --txt-documents line"
                )
        yield _decoded(bytes(content))


def read_lines(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """Each line one document."""
    for _, line in _lines(unit, advance):
        yield _decoded(line)


def read_paragraphs(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """Each run of lines between blank lines one document."""
    paragraph: list[bytes] = []
    for _, line in _lines(unit, advance):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield _decoded(b"\n".join(paragraph))
            paragraph = []
    if paragraph:
        yield _decoded(b"\n".join(paragraph))


def read_jsonl(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """The text field of one JSON object per line; blank lines are no documents."""
    for number, line in _lines(unit, advance):
        if not line.strip():
            continue
        try:
            record = parsed(line)
            yield Document(text_of(record, options.text_field), id=id_of(record, options.id_field))
        except ValueError as error:
            if options.skip_bad_lines:
                yield Document("", "malformed line")
                continue
            where = f"{unit.paths[0]}:{number + _lines_before(unit)}"
            raise DataError(
                f"{where}: {error}; mend the line, or have `data prepare` leave such lines out by --skip-bad-lines"
            ) from error


def read_parquet(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """The text column of the row groups from start to stop, batch by batch."""
    import pyarrow.parquet

    path = unit.paths[0]
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(unit.start, unit.stop):
            rows = file.metadata.row_group(group).num_rows
            share = unit.size / (unit.stop - unit.start) / max(1, rows)
            columns = [options.text_field, *([options.id_field] if options.id_field else [])]
            batches = file.iter_batches(batch_size=256, row_groups=[group], columns=columns)
            while True:
                try:
                    batch = next(batches)
                    texts = batch.column(options.text_field).to_pylist()
                    ids = batch.column(columns[-1]).to_pylist() if options.id_field else [""] * len(texts)
                except StopIteration:
                    break
                except (pyarrow.ArrowException, OSError) as error:
                    raise DataError(f"{path}: row group {group} is damaged ({error}); copy the file again") from error
                if None in ids:
                    raise DataError(
                        f"{path}: row group {group} has a text without an id: fill column {columns[-1]!r}, or choose another "
                        "with --id-field"
                    )
                for text, number in zip(texts, ids, strict=True):
                    yield Document(text or "", "no text" if text is None else "", str(number))
                advance(int(share * len(texts)))


def read_python(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """Python sources, each decoded as it declares."""
    for path in unit.paths:
        content = Path(path).read_bytes()
        advance(len(content))
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
            yield Document(content.decode(encoding))
        except (SyntaxError, UnicodeDecodeError, LookupError):
            yield Document("", "not in its declared encoding")


def read_docstrings(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    from data.stdlib import docstrings, topics

    for text in (*topics(), *docstrings()):
        yield Document(text)


def read_hub(unit: Unit, options: ReadOptions, advance: Advance) -> Iterator[Document]:
    """One shard (number `start`) of a streamed `datasets` dataset."""
    from data.hub import rows

    for row in rows(unit.paths[0], unit.start):
        try:
            text = text_of(row, options.text_field)
        except ValueError as error:
            raise DataError(f"{unit.paths[0]}: {error}") from error
        advance(len(text))
        yield Document(text)


READERS: dict[str, Callable[[Unit, ReadOptions, Advance], Iterator[Document]]] = {
    "file": read_files,
    "line": read_lines,
    "paragraph": read_paragraphs,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "python": read_python,
    "docstrings": read_docstrings,
    "hub": read_hub,
}


def _decoded(content: bytes) -> Document:
    try:
        return Document(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return Document("", "not UTF-8")


def _lines(unit: Unit, advance: Advance) -> Iterator[tuple[int, bytes]]:
    """Lines of a unit's one file without their ends, numbered from 1 at the unit's start."""
    path, rest, number = unit.paths[0], b"", 0
    for chunk in chunks(path, advance, unit.start, unit.stop or None):
        first, *more = chunk.split(b"\n")
        rest += first
        if len(rest) > LONGEST_DOCUMENT:
            raise DataError(f"{path}: a line of more than {LONGEST_DOCUMENT >> 20} MiB; is it in the right format?")
        for following in more:
            number += 1
            yield number, rest.removesuffix(b"\r")
            rest = following
    if rest:
        yield number + 1, rest


def _lines_before(unit: Unit) -> int:
    """Line ends before a unit's start, to turn its line numbers into the file's."""
    if not unit.start:
        return 0
    return sum(chunk.count(b"\n") for chunk in chunks(unit.paths[0], lambda size: None, 0, unit.start))
