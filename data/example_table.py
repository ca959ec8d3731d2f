"""Encoded examples in flat arrays: made once for a file, kept beside the runs, read at any place."""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import DataError
from config.schema import RunConfig
from data.example_files import content_hash, read_records
from data.example_rows import Row, row_encoder
from data.files import atomic_file
from data.tokenizer import Tokenizer

Ids = NDArray[np.int64]
CACHE = ".examples"
VERSION = 1
PARTS = ("ids", "labels", "source")
OPEN_ROWS = 64
"""Rows that packing still puts examples into."""


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, one after the other."""

    values: NDArray
    bounds: Ids

    @classmethod
    def of(cls, lists: Sequence[Sequence[float]], dtype: type) -> "Ragged":
        bounds = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
        return cls(np.fromiter((value for one in lists for value in one), dtype, int(bounds[-1])), bounds)

    def __getitem__(self, number: int) -> NDArray:
        return self.values[self.bounds[number] : self.bounds[number + 1]]

    @property
    def lengths(self) -> Ids:
        return np.diff(self.bounds)


@dataclass(frozen=True)
class ExampleTable:
    """All examples of a file, in its order."""

    path: str
    hash: str
    """Of the file's content."""
    ids: Ragged
    labels: Ragged
    source: Ragged
    second_N: Ids
    """See data.example_rows.Row."""

    def __len__(self) -> int:
        return len(self.second_N)


def open_table(path: str, config: RunConfig, tokenizer: Tokenizer) -> ExampleTable:
    """The examples of a file as the recipe's objective reads them, encoded now unless that has been done before.

    Raises DataError as `encode_table`.
    """
    content = content_hash(path)
    cached = _cached(content, config, tokenizer)
    if not cached.is_file():
        _save(cached, encode_table(path, config, tokenizer))
    with np.load(cached) as arrays:
        parts = {part: Ragged(arrays[part], arrays[f"{part}_bounds"]) for part in PARTS}
        return ExampleTable(path, content, second_N=arrays["second"], **parts)


def encode_table(path: str, config: RunConfig, tokenizer: Tokenizer) -> ExampleTable:
    """The examples of a file in memory alone.

    Raises DataError at the first example that cannot be read, does not fit, or has an unknown label.
    """
    encode = row_encoder(config, tokenizer)
    rows = [encode(record) for record in read_records(path)]
    if not rows:
        raise DataError(f"{path}: holds no examples")
    return table_of(rows, path, content_hash(path))


def keep_table(table: ExampleTable, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Save an encoded table where `open_table` finds it. `config` has to encode the same examples alike."""
    _save(_cached(table.hash, config, tokenizer), table)


def _cached(content: str, config: RunConfig, tokenizer: Tokenizer) -> Path:
    """Where the table of a file with this content is kept: by everything that its rows depend on."""
    assert config.data.examples is not None
    facts = [VERSION, content, tokenizer.fingerprint, tokenizer.eod_token, config.model.family, config.data.row_length]
    facts += [config.objective.model_dump(), config.data.examples.model_dump(exclude={"train", "valid", "tokenizer"})]
    name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
    return Path(config.run.folder) / CACHE / f"{name}.npz"


def table_of(rows: list[Row], path: str = "", content: str = "") -> ExampleTable:
    """Encoded examples as a table in memory."""
    number = np.float32 if any(isinstance(label, float) for label in rows[0].labels) else np.int32
    ids, source = (Ragged.of([getattr(row, part) for row in rows], np.int32) for part in ("ids", "source"))
    labels = Ragged.of([row.labels for row in rows], number)
    return ExampleTable(path, content, ids, labels, source, np.array([row.second for row in rows], np.int64))


def _save(path: Path, table: ExampleTable) -> None:
    """Under a name of this process's own first: all ranks, and runs that start together, find no table and make it."""
    own = path.with_name(f"{secrets.token_hex(8)}-{path.name}")
    arrays: dict[str, Any] = {"second": table.second_N}
    for part in PARTS:
        ragged = getattr(table, part)
        arrays |= {part: ragged.values, f"{part}_bounds": ragged.bounds}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(own) as file:
            np.savez(file, **arrays)
        os.replace(own, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot keep the encoded examples: {error.strerror}; set run.folder to another one"
        ) from None


def pack(lengths_N: Ids, room: int) -> Ragged:
    """The numbers of the examples in each row: in order, into the first of the last rows with room for it (first fit)."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number, length in enumerate(lengths_N.tolist()):
        recent = range(max(0, len(rows) - OPEN_ROWS), len(rows))
        row = next((row for row in recent if left[row] >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= length
    return Ragged.of(rows, np.int64)
