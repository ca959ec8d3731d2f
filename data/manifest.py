"""What is in a prepared dataset: `manifest.json`, written last, so that its presence means the dataset is whole."""

import hashlib
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from config import DataError
from data.files import write_atomically
from data.shard import Shard

MANIFEST_NAME = "manifest.json"
PARTIAL = ".partial"
"""Folder of a preparation's finished units, inside the dataset's."""
BLOCK_BYTES = 4 << 20
MOST_BLOCKS = 64

Split = Literal["train", "valid"]
SPLITS: tuple[Split, ...] = ("train", "valid")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardEntry(Record):
    """One shard as it was written. Checksums are XXH3-64, in hex."""

    name: str
    """File name without `.bin` or `.idx`."""
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the documents: loss per token x tokens / text_bytes is the loss per byte."""
    bytes: int
    """Size of the `.bin` file."""
    block_bytes: int
    block_checksums: tuple[str, ...]
    """One per block of `block_bytes` of the `.bin` file; the last block may be short. A large shard has larger blocks,
    not more than 64 of them, so that the manifest of any corpus is small."""
    idx_checksum: str

    @classmethod
    def of(cls, prefix: Path, text_bytes: int) -> "ShardEntry":
        """Describe a finished shard by reading it back."""
        shard = Shard.open(prefix)
        size = len(shard) * shard.dtype.itemsize
        block_bytes = block_size(size)
        return cls(
            name=prefix.name,
            tokens=len(shard),
            documents=shard.document_count,
            text_bytes=text_bytes,
            bytes=size,
            block_bytes=block_bytes,
            block_checksums=tuple(block_checksums(Path(f"{prefix}.bin"), block_bytes)),
            idx_checksum=checksum(Path(f"{prefix}.idx").read_bytes()),
        )


Splits = dict[Split, tuple[ShardEntry, ...]]


class SourceEntry(Record):
    """One SOURCE of the command line, and what it was made of."""

    name: str
    files: int
    bytes: int
    fingerprint: str
    """Hash over the names, sizes and modification times of the files."""


class Manifest(Record):
    """Everything known about a prepared dataset."""

    version: Literal[1] = 1
    tokens: int
    documents: int
    text_bytes: int
    vocab_size: int
    dtype: Literal["uint16", "int32"]
    eod_id: int
    """Token that ends each document."""
    tokenizer_fingerprint: str
    sources: tuple[SourceEntry, ...]
    settings: dict[str, Any]
    """Arguments of `prepare` that decide the content."""
    dropped: dict[str, int]
    """Documents left out, by reason."""
    splits: Splits

    @cached_property
    def hash(self) -> str:
        """SHA-256 of what a reader gets, in hex; the order of the stream is keyed by it.

        Sources and settings are left out: the same tokens in the same shards have the same order wherever, and from
        whatever path, they were prepared.
        """
        content = self.model_dump(
            mode="json", include={"version", "dtype", "eod_id", "tokenizer_fingerprint", "splits"}
        )
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read `manifest.json`, once unless it changes. Raises DataError if there is none or it cannot be read."""
        path = Path(folder) / MANIFEST_NAME
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder; make it with: python -m data prepare SOURCE... --out {folder}")
        if not path.is_file():
            raise DataError(
                f"{folder}: not a finished dataset (no {MANIFEST_NAME}); "
                f"make or continue it with: python -m data prepare SOURCE... --out {folder}"
            )
        status = path.stat()
        return _read(path, (status.st_ino, status.st_size, status.st_mtime_ns))

    def save(self, folder: Path) -> None:
        """Write `manifest.json` atomically."""
        write_atomically(Path(folder) / MANIFEST_NAME, self.model_dump_json(indent=1) + "\n")


@lru_cache(maxsize=1024)
def _read(path: Path, identity: tuple[int, int, int]) -> Manifest:
    """`identity` (inode, size, time of change) is another one after each `save`."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(f"{path}: damaged or of another version: {where}: {first['msg']}") from error


def canonical_json(content: Any) -> str:
    """One text for equal content: sorted keys, no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def checksum(content: bytes | memoryview) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def block_size(size: int) -> int:
    """Bytes of each block of a file of so many."""
    return BLOCK_BYTES * max(1, -(-size // (BLOCK_BYTES * MOST_BLOCKS)))


def block_checksums(path: Path, block_bytes: int) -> list[str]:
    """Checksum of each block of a file."""
    with open(path, "rb") as file:
        return [checksum(block) for block in iter(lambda: file.read(block_bytes), b"")]
