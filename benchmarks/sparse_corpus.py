"""A prepared corpus of any size that takes no room: its files are holes, its manifest and indices are real."""

import os
from pathlib import Path

from data.manifest import Manifest, ShardEntry, block_size
from data.shard import CODES, HEADER, MAGIC, VERSION, token_dtype
from data.tokenizer import TOKENIZER_NAME, byte_tokenizer

MEAN_DOCUMENT = 1000
VOCAB_SIZE = 50_304


def write_sparse_corpus(folder: Path, shards: int, tokens: int) -> str:
    """`tokens` tokens (all of them id 0) of u16 in equal shards; returns the folder. Nothing can be verified in it, as its
    checksums are made up, but as many and as long as real ones."""
    folder.mkdir(parents=True)
    tokenizer = byte_tokenizer()
    tokenizer.save(folder / TOKENIZER_NAME)
    entries = tuple(_sparse_shard(folder / f"train-{number:05}", tokens // shards) for number in range(shards))
    Manifest(
        tokens=tokens,
        documents=sum(entry.documents for entry in entries),
        text_bytes=4 * tokens,
        vocab_size=VOCAB_SIZE,
        dtype="uint16",
        eod_id=tokenizer.eod_id,
        tokenizer_fingerprint=tokenizer.fingerprint,
        sources=(),
        settings={},
        dropped={},
        splits={"train": entries, "valid": entries[:1]},
    ).save(folder)
    return str(folder)


def _sparse_shard(prefix: Path, tokens: int) -> ShardEntry:
    dtype = token_dtype(VOCAB_SIZE)
    documents, size = max(1, tokens // MEAN_DOCUMENT), tokens * dtype.itemsize
    _truncated(f"{prefix}.bin", size)
    header = HEADER.pack(MAGIC, VERSION, CODES[dtype], documents, documents + 1)
    last_length, last_pointer = MEAN_DOCUMENT, size - MEAN_DOCUMENT * dtype.itemsize
    with open(f"{prefix}.idx", "wb") as idx:
        idx.write(header)
        idx.seek(HEADER.size + 4 * (documents - 1))
        idx.write(last_length.to_bytes(4, "little"))
        idx.seek(HEADER.size + 12 * documents - 8)
        idx.write(last_pointer.to_bytes(8, "little"))
        idx.truncate(HEADER.size + 12 * documents + 8 * (documents + 1))
    blocks = -(-size // block_size(size))
    return ShardEntry(
        name=prefix.name,
        tokens=tokens,
        documents=documents,
        text_bytes=4 * tokens,
        bytes=size,
        block_bytes=block_size(size),
        block_checksums=tuple(f"{number:016x}" for number in range(blocks)),
        idx_checksum="0" * 16,
    )


def _truncated(path: str, size: int) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.ftruncate(descriptor, size)
    os.close(descriptor)
