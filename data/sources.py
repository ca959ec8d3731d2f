"""From the SOURCE arguments to an ordered list of units of work, and a fingerprint of what they were made from."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from config import DataError
from data.documents import LONGEST_DOCUMENT, ReadOptions, Unit
from data.hub import PREFIX as HUB
from data.hub import parse, shard_count
from data.manifest import MANIFEST_NAME, PARTIAL, Manifest, SourceEntry
from data.stdlib import python_files

STDLIB = "stdlib"
SMALLEST_UNIT = 8 << 20
MOST_UNITS = 1024
DOCSTRINGS_BYTES = 1 << 20

_TEXT = (
    ".txt .text .md .markdown .rst .tex .adoc .org .html .htm .xml .json .yaml .yml .toml .ini .cfg .css .scss .sql "
    ".py .pyi .pyx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .java .kt .scala .js .jsx .mjs .ts .tsx .go .rs .rb .php .pl "
    ".lua .sh .bash .zsh .r .jl .swift .m .hs .ml .mli .clj .ex .exs .erl .el .lisp .scm .f90 .f .vhdl .v .sv .zig "
    ".nim .dart .cs .fs .vb .asm .s .cmake .mk .proto .srt .vtt"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())
PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Source:
    """One SOURCE of the command line."""

    entry: SourceEntry
    units: tuple[Unit, ...]
    skipped: dict[str, int]
    """Files of a folder that are no documents, by suffix."""


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    size: int


def plan(names: list[str], options: ReadOptions) -> list[Source]:
    """Divide the sources into units of bounded size. The division depends on the sources alone, never on workers.

    Raises DataError for a source that is missing, empty or of an unknown kind.
    """
    found = [_find(name, options) for name in names]
    total = sum(file.size for files, _ in found for file in files)
    unit_bytes = max(SMALLEST_UNIT, total // MOST_UNITS)
    return [
        Source(_entry(name, files), tuple(_units(name, files, options, unit_bytes)), skipped)
        for name, (files, skipped) in zip(names, found, strict=True)
    ]


def _find(name: str, options: ReadOptions) -> tuple[list[_File], dict[str, int]]:
    """Files of a source, sorted, and the suffixes left out with their counts."""
    if name == STDLIB:
        return [_File(path, "python", path.stat().st_size) for path in python_files()], {}
    if name.startswith(HUB):
        local = Path(parse(name)[0])
        files = sorted(path for path in local.rglob("*") if path.is_file()) if local.is_dir() else []
        return [_File(path, "hub", path.stat().st_size) for path in files], {}
    path = Path(name)
    if path.is_dir():
        return _walk(path, options)
    if not path.exists():
        raise DataError(f"{name}: no such file or folder; a SOURCE is a path, 'stdlib', or hf:NAME_OR_PATH")
    kind = _kind(path, options)
    if kind is None:
        raise DataError(
            f"{name}: a file of unknown kind {path.suffix!r}; known are .jsonl and .txt (also .gz, .zst), .parquet and "
            "the suffixes of sources and markup; rename it, or pass it in a format among these"
        )
    return [_File(path, kind, path.stat().st_size)], {}


def _walk(folder: Path, options: ReadOptions) -> tuple[list[_File], dict[str, int]]:
    files, skipped, seen = [], Counter[str](), set[tuple[int, int]]()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in seen:  # links that form a circle, or lead twice to one folder
            skipped["linked folder read already"] += 1
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        if PARTIAL in folders or _is_prepared(Path(parent, MANIFEST_NAME)):
            skipped["prepared dataset"] += 1
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(parent, name)
            kind = _kind(path, options)
            if kind and path.is_file():
                files.append(_File(path, kind, path.stat().st_size))
            else:
                skipped[path.suffix or "no suffix"] += 1
    if not files:
        others = ", ".join(f"{suffix} {count}" for suffix, count in skipped.most_common(5))
        raise DataError(f"{folder}: no file of a known kind in this folder ({others or 'it is empty'})")
    return files, dict(skipped)


def _refuse(error: OSError) -> None:
    raise DataError(
        f"{error.filename}: cannot be read: {error.strerror}; every folder of a source is, so name others without it"
    ) from error


def _is_prepared(manifest: Path) -> bool:
    """Whether a folder is a dataset of ours, prepared inside its own source. Other programs have manifests too."""
    if not manifest.is_file():
        return False
    try:
        Manifest.load(manifest.parent)
    except DataError:
        return False
    return True


def _kind(path: Path, options: ReadOptions) -> str | None:
    """The reader for a file, by its suffix; None if there is none."""
    plain = path.with_suffix("") if path.suffix in PACKED else path
    suffix = plain.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if suffix == ".parquet" and plain == path:
        return "parquet"
    return options.txt_documents if suffix in TEXT_SUFFIXES else None


def _entry(name: str, files: list[_File]) -> SourceEntry:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.path.stat().st_mtime_ns}\n".encode())
    return SourceEntry(
        name=name, files=len(files), bytes=sum(f.size for f in files), fingerprint=digest.hexdigest()[:32]
    )


def _units(name: str, files: list[_File], options: ReadOptions, unit_bytes: int) -> Iterator[Unit]:
    if name.startswith(HUB):
        count = shard_count(name)
        size = sum(file.size for file in files) // count
        yield from (Unit("hub", (name,), shard, size=size) for shard in range(count))
        return
    for whole, members in groupby(files, key=lambda file: file.kind in ("file", "python")):
        if whole:
            yield from _groups(members, unit_bytes)
            continue
        for file in members:
            cut = _row_groups if file.kind == "parquet" else _byte_ranges
            yield from cut(file, options, unit_bytes)
    if name == STDLIB:
        yield Unit("docstrings", (), size=DOCSTRINGS_BYTES)


def _groups(files: Iterable[_File], unit_bytes: int) -> Iterator[Unit]:
    """Files that are one document each, as many to a unit as fill it."""
    paths: list[str] = []
    size, kind = 0, ""
    for file in files:
        paths.append(str(file.path))
        size, kind = size + file.size, file.kind
        if size >= unit_bytes:
            yield Unit(kind, tuple(paths), size=size)
            paths, size = [], 0
    if paths:
        yield Unit(kind, tuple(paths), size=size)


def _byte_ranges(file: _File, options: ReadOptions, unit_bytes: int) -> Iterator[Unit]:
    """A file of lines, cut behind a line's end, or behind a blank line; a packed one stays whole."""
    if file.path.suffix in PACKED:
        yield Unit(file.kind, (str(file.path),), size=file.size)
        return
    start = 0
    with open(file.path, "rb") as content:
        while start < file.size:
            content.seek(start + unit_bytes)
            content.readline(LONGEST_DOCUMENT)
            while file.kind == "paragraph" and content.readline(LONGEST_DOCUMENT).strip():
                pass
            stop = min(content.tell(), file.size)
            yield Unit(file.kind, (str(file.path),), start, stop, stop - start)
            start = stop


def _row_groups(file: _File, options: ReadOptions, unit_bytes: int) -> Iterator[Unit]:
    """A Parquet file, cut between row groups. Raises DataError if it is damaged or lacks the text column."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file.path) as content:
            metadata, columns = content.metadata, content.schema_arrow
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.path}: not a whole Parquet file ({error})") from error
    for option, wanted in (("--text-field", options.text_field), ("--id-field", options.id_field)):
        if wanted and wanted not in columns.names:
            names = ", ".join(map(repr, columns.names))
            raise DataError(f"{file.path}: no column {wanted!r}; there are {names}: choose with {option}")
    kind = columns.field(options.text_field).type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise DataError(f"{file.path}: column {options.text_field!r} is {kind}, not text: choose with --text-field")
    if options.id_field:
        kind = columns.field(options.id_field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_integer(kind)):
            raise DataError(f"{file.path}: column {options.id_field!r} is {kind}, not ids: choose with --id-field")
    groups = metadata.num_row_groups
    share = max(1, file.size // max(1, groups))
    step = max(1, unit_bytes // share)
    for start in range(0, groups, step):
        stop = min(start + step, groups)
        yield Unit("parquet", (str(file.path),), start, stop, (stop - start) * share)
