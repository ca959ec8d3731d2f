"""One shard: the file pair PREFIX.bin and PREFIX.idx in the Megatron MMIDIDX layout, written whole or not at all.

`.bin` holds token ids back to back, without a header. `.idx`, little-endian and packed, holds the magic
`MMIDIDX\\0\\0`, u64 version, u8 dtype code, u64 S sequences, u64 D document bounds, then i32[S] lengths in tokens,
i64[S] byte positions in `.bin` and i64[D] document bounds. One document is one sequence here, so D = S + 1.
"""

import io
import os
import struct
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from config import DataError
from data.files import atomic_file

HEADER = struct.Struct("<9sQBQQ")
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
PREPARE_AGAIN = "prepare the dataset again, or copy the file again from where it is whole"


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type Megatron's readers expect for a vocabulary: u16 below 65,500 tokens, else i32."""
    return np.dtype("<u2" if vocab_size < 65500 else "<i4")


@dataclass(frozen=True)
class Shard:
    """A shard on disk, memory-mapped when its arrays are first touched."""

    prefix: Path
    dtype: np.dtype
    token_count: int
    document_count: int

    @classmethod
    def open(cls, prefix: Path) -> "Shard":
        """Read the header and check both files' sizes against it; no token is read.

        Raises DataError that names the file, both byte counts and the fix.
        """
        idx, bin_ = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        sequences, dtype, token_bytes = _read_index(idx)
        try:
            found = bin_.stat().st_size
        except FileNotFoundError:
            raise DataError(f"{bin_}: missing, though {idx.name} lies beside it; {PREPARE_AGAIN}") from None
        if found != token_bytes:
            raise DataError(f"{bin_}: {found:,} bytes, but {idx.name} says {token_bytes:,}; {PREPARE_AGAIN}")
        return cls(Path(prefix), dtype, token_bytes // dtype.itemsize, sequences)

    def __len__(self) -> int:
        """Tokens in the shard."""
        return self.token_count

    @cached_property
    def tokens(self) -> np.ndarray:
        """All token ids of the shard, 1-D; a view of the mapped file, so a slice reads only its own pages."""
        return _mapped(f"{self.prefix}.bin", self.token_count * self.dtype.itemsize).view(self.dtype)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, i32[S]. Unaligned (the header is 34 bytes): index it, or copy it once."""
        return self._index_bytes[: 4 * self.document_count].view("<i4")

    @cached_property
    def pointers(self) -> np.ndarray:
        """Byte position of each document in `.bin`, i64[S]. Unaligned: index it, or copy it once.

        numpy's whole-array functions (`searchsorted` among them) copy an unaligned array on every call.
        """
        return self._index_bytes[4 * self.document_count : 12 * self.document_count].view("<i8")

    @cached_property
    def _index_bytes(self) -> np.ndarray:
        return _mapped(f"{self.prefix}.idx", _index_size(self.document_count))[HEADER.size :]

    def document(self, number: int) -> np.ndarray:
        """Token ids of one document, its end-of-document token included."""
        start = int(self.pointers[number]) // self.dtype.itemsize
        return self.tokens[start : start + int(self.lengths[number])]


def _mapped(path: str, size: int) -> np.ndarray:
    """The bytes of a file. Raises DataError if it is missing or has another size."""
    try:
        content = np.asarray(np.memmap(path, np.uint8, "r"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file, though manifest.json names it; {PREPARE_AGAIN}") from None
    except ValueError:  # it is empty
        content = np.empty(0, np.uint8)
    if content.size != size:
        raise DataError(f"{path}: {content.size:,} bytes, but manifest.json says {size:,}; {PREPARE_AGAIN}")
    return content


def _index_size(sequences: int) -> int:
    return HEADER.size + 12 * sequences + 8 * (sequences + 1)


def _read_index(idx: Path) -> tuple[int, np.dtype, int]:
    """Sequences, token type and the bytes that `.bin` must have, in one opening of the file."""
    try:
        file = open(idx, "rb", buffering=0)  # noqa: SIM115 (closed below)
    except FileNotFoundError:
        raise DataError(f"{idx}: no such shard index; {PREPARE_AGAIN}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size < HEADER.size:
            raise DataError(f"{idx}: {size:,} bytes, but the header alone has {HEADER.size}; {PREPARE_AGAIN}")
        magic, version, code, sequences, bounds = HEADER.unpack(file.read(HEADER.size))
        if (magic, version) != (MAGIC, VERSION) or code not in DTYPES:
            raise DataError(f"{idx}: not a Megatron MMIDIDX index of version {VERSION} with integer tokens")
        expected = HEADER.size + 12 * sequences + 8 * bounds
        if size != expected:
            raise DataError(f"{idx}: {size:,} bytes, but its header says {expected:,}; {PREPARE_AGAIN}")
        if bounds != sequences + 1:
            raise DataError(
                f"{idx}: {bounds - 1:,} documents in {sequences:,} sequences; only one sequence each is read"
            )
        if not sequences:
            raise DataError(f"{idx}: holds no document; {PREPARE_AGAIN}")
        dtype = np.dtype(DTYPES[code])
        last_length = _read_at(file, "<i", HEADER.size + 4 * (sequences - 1))
        last_pointer = _read_at(file, "<q", HEADER.size + 12 * sequences - 8)
    return sequences, dtype, last_pointer + last_length * dtype.itemsize


def _read_at(file: io.FileIO, layout: str, position: int) -> int:
    file.seek(position)
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


class ShardWriter:
    """Writes a shard under temporary names; `close` makes it durable and gives it its name.

    As a context manager it removes what it wrote when the block is left by an exception.
    """

    def __init__(self, prefix: Path, dtype: np.dtype) -> None:
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self.token_count = 0
        self._lengths = array("i")
        self._files = ExitStack()
        self._bin = self._files.enter_context(atomic_file(Path(f"{prefix}.bin")))

    @property
    def document_count(self) -> int:
        return len(self._lengths)

    def add(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append one document of at least one token."""
        wide = np.asarray(ids, dtype=np.int64)
        assert wide.ndim == 1 and wide.min() >= 0 and wide.max() <= np.iinfo(self.dtype).max
        self._bin.write(wide.astype(self.dtype).data)
        self._lengths.append(len(wide))
        self.token_count += len(wide)

    def close(self) -> None:
        """Finish `.bin`, then write `.idx`."""
        self._files.close()
        lengths = np.array(self._lengths, dtype="<i8")
        byte_lengths = lengths * self.dtype.itemsize
        with atomic_file(Path(f"{self.prefix}.idx")) as idx:
            idx.write(HEADER.pack(MAGIC, VERSION, CODES[self.dtype], len(lengths), len(lengths) + 1))
            idx.write(lengths.astype("<i4").tobytes())
            idx.write((np.cumsum(byte_lengths) - byte_lengths).tobytes())
            idx.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._files.__exit__(kind, error, trace)
