"""Reads every byte of a dataset and compares it with the manifest."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import DataError
from data.dataset import load_tokenizer
from data.manifest import Manifest, ShardEntry, checksum
from data.progress import Progress, in_bytes
from data.shard import PREPARE_AGAIN, Shard


@dataclass(frozen=True)
class Verification:
    """What a check found; no problems means the dataset is as it was written."""

    shards: int
    bytes: int
    seconds: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        verdict = f"{len(self.problems):,} problems" if self.problems else "intact"
        speed = in_bytes(self.bytes / max(self.seconds, 1e-9))
        return f"{verdict}: {self.shards:,} shards, {in_bytes(self.bytes)} in {self.seconds:.2f} s ({speed}/s)"


def verify(folder: Path | str) -> Verification:
    """Check tokenizer, sizes, all checksums and that every token is in the vocabulary.

    Raises DataError if there is no manifest to compare with.
    """
    folder = Path(folder)
    started, manifest = time.monotonic(), Manifest.load(Path(folder))
    entries = [entry for split in manifest.splits.values() for entry in split]
    problems = list(_tokenizer_problems(folder))
    done, total = 0, sum(entry.bytes for entry in entries)
    with Progress("verify", total) as progress:
        for entry in entries:
            problems += _shard_problems(folder, entry, manifest)
            done += entry.bytes
            progress.show(done)
    return Verification(len(entries), total, time.monotonic() - started, tuple(problems))


def _tokenizer_problems(folder: Path) -> Iterator[str]:
    try:
        load_tokenizer(folder)
    except DataError as error:
        yield str(error)


def _shard_problems(folder: Path, entry: ShardEntry, manifest: Manifest) -> Iterator[str]:
    try:
        shard = Shard.open(folder / entry.name)
    except DataError as error:
        yield str(error)
        return
    if checksum(Path(f"{shard.prefix}.idx").read_bytes()) != entry.idx_checksum:
        yield f"{shard.prefix}.idx: differs from when it was written; {PREPARE_AGAIN}"
    if (shard.dtype.name, len(shard)) != (manifest.dtype, entry.tokens):
        yield (
            f"{shard.prefix}.idx: {len(shard):,} tokens of {shard.dtype.name}, but manifest.json says {entry.tokens:,} "
            f"of {manifest.dtype}; {PREPARE_AGAIN}"
        )
        return
    yield from _block_problems(shard, entry, manifest.vocab_size)


def _block_problems(shard: Shard, entry: ShardEntry, vocab_size: int) -> Iterator[str]:
    step = entry.block_bytes // shard.dtype.itemsize
    for number, expected in enumerate(entry.block_checksums):
        block = np.ascontiguousarray(shard.tokens[number * step : (number + 1) * step])
        first = number * entry.block_bytes
        where = f"{shard.prefix}.bin: block {number} (bytes {first:,} to {first + block.nbytes - 1:,})"
        if checksum(block.data) != expected:
            yield f"{where} differs from when it was written; {PREPARE_AGAIN}"
        elif (largest := int(block.max())) >= vocab_size:
            yield f"{where} holds token {largest:,}, but the vocabulary has {vocab_size:,}; {PREPARE_AGAIN}"
