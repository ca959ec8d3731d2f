"""Files of labelled pairs: (anchor, positive, hard negatives), each line read when it is asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from config import DataError
from data.records import fields_of

Ids = NDArray[np.int64]
NAMES = ("anchor", "positive")
SCANNED_BYTES = 1 << 24


class Pair(NamedTuple):
    anchor: str
    positive: str
    negatives: tuple[str, ...]


class PairRows:
    """The pairs of one file as rows that a stream orders; an address is (0, number of the pair)."""

    def __init__(self, path: str, row_length: int, hard_negatives: int = 0, rank: int = 0, world_size: int = 1) -> None:
        """`row_length`: tokens that a pair counts for. Ranks share the checking: each looks at every `world_size`-th pair.

        Raises DataError if the file is missing, empty or of an unknown kind, or a line of this rank's share is no pair with
        as many hard negatives.
        """
        read = READERS.get(Path(path).suffix.lower())
        if read is None:
            raise DataError(f"{path}: pairs are read from {', '.join(READERS)}: convert the file to one of them")
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; data.pairs names files of labelled pairs")
        self.names, self.row_length = [path], row_length
        try:
            self._records, self._where = read(Path(path))
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; data.pairs names files of labelled pairs") from error
        self.count_K = np.array([len(self._records)])
        if not len(self._records):
            raise DataError(f"{path}: has no pairs")
        try:
            for number in range(rank, len(self._records), world_size):
                self._check(number, hard_negatives)
        except DataError as error:
            error.alone = world_size > 1
            raise

    def __getitem__(self, number: int) -> Pair:
        try:
            return _pair(self._records[number])
        except ValueError as error:
            raise DataError(f"{self.describe(0, number)}: {error}") from error

    def locate(self, dataset_N: Ids, row_N: Ids) -> Ids:
        """Addresses [N, 2] of rows."""
        return np.stack([dataset_N, row_N], axis=1)

    def describe(self, shard: int, begin: int) -> str:
        """An address in words."""
        return f"{self.names[shard]}:{self._where(begin)}"

    def _check(self, number: int, hard_negatives: int) -> None:
        found = len(self[number].negatives)
        if found < hard_negatives:
            raise DataError(
                f"{self.describe(0, number)}: has {found} hard negatives, but objective.hard_negatives is {hard_negatives}: "
                "lower it, or give each line as many"
            )


def _pair(record: dict[str, Any]) -> Pair:
    """Raises ValueError for a record that is no pair."""
    for name in NAMES:
        if name not in record:
            raise ValueError(_lacks(name, record))
        if not isinstance(record[name], str) or not record[name].strip():
            raise ValueError(f"{name!r} is {record[name]!r}; give a text that is not empty")
    negatives: list[str] = []
    for name, value in record.items():
        if name.startswith("negative") and value is not None:
            negatives += value if isinstance(value, list) else [value]
    for negative in negatives:
        if not isinstance(negative, str) or not negative.strip():
            raise ValueError(f"a hard negative is {negative!r}; give a text that is not empty, or leave it out")
    return Pair(record[NAMES[0]], record[NAMES[1]], tuple(negatives))


def _lacks(name: str, names: Iterable[str]) -> str:
    return f"no {name!r}; there are {', '.join(map(repr, names))}: name the texts of a pair {' and '.join(map(repr, NAMES))}"


class _Lines(Sequence[dict[str, Any]]):
    """Lines of a file that are not blank, each found and parsed when it is asked for."""

    def __init__(self, path: Path, parse: Callable[[str], dict[str, Any]]) -> None:
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        self._parse = parse
        ends = np.concatenate([*_line_ends(self._bytes), [len(self._bytes)]]).astype(np.int64)
        starts = np.concatenate([[0], ends[:-1] + 1])
        written = np.flatnonzero(ends > starts)
        self._starts, self._ends = starts, ends
        may_be_blank = written[np.isin(self._bytes[starts[written]], list(b" \t\r"))].tolist()
        blank = [line for line in may_be_blank if not self._line(line).strip()]
        self.numbers = written[~np.isin(written, blank)] + 1
        """Of the lines in the file, from 1."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: Any) -> Any:
        try:
            return self._parse(self._line(self.numbers[number] - 1).decode("utf-8-sig").rstrip("\r"))
        except UnicodeDecodeError as error:
            raise ValueError("not UTF-8 text: save the file as UTF-8") from error

    def _line(self, line: int) -> bytes:
        return self._bytes[self._starts[line] : self._ends[line]].tobytes()


def _line_ends(content: NDArray[np.uint8]) -> Iterator[Ids]:
    for first in range(0, len(content), SCANNED_BYTES):
        yield first + np.flatnonzero(content[first : first + SCANNED_BYTES] == ord("\n"))


class _Columns(Sequence[dict[str, Any]]):
    """Rows of a Parquet file, held in memory as Arrow columns."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            names = pyarrow.parquet.read_schema(path).names
            if missing := [name for name in NAMES if name not in names]:
                raise DataError(f"{path}: {_lacks(missing[0], names)}")
            wanted = [name for name in names if name in NAMES or name.startswith("negative")]
            self._table = pyarrow.parquet.read_table(path, columns=wanted).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a whole Parquet file ({error})") from error

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, number: Any) -> Any:
        return {name: self._table.column(name)[number].as_py() for name in self._table.column_names}


Records = tuple[Sequence[dict[str, Any]], Callable[[int], str]]
"""The records of a file, and where each stands in it, in words."""


def _read_jsonl(path: Path) -> Records:
    lines = _Lines(path, fields_of)
    return lines, lambda number: str(lines.numbers[number])


def _read_tsv(path: Path) -> Records:
    lines = _Lines(path, _tsv_record)
    with suppress(ValueError):  # a first line that is no pair is found with all others
        if len(lines) and all(lines[0][name] == name for name in NAMES):  # a header
            lines.numbers = lines.numbers[1:]
    return lines, lambda number: str(lines.numbers[number])


def _read_parquet(path: Path) -> Records:
    return _Columns(path), lambda number: f"row {number + 1}"


def _tsv_record(line: str) -> dict[str, Any]:
    cells = line.split("\t")
    if len(cells) < len(NAMES):
        raise ValueError(f"{len(cells)} column; give anchor, positive and any hard negatives between tabs")
    return {**dict(zip(NAMES, cells, strict=False)), "negatives": [cell for cell in cells[len(NAMES) :] if cell]}


READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": _read_jsonl,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
