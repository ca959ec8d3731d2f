"""A prepared dataset, opened for reading: cheap, whatever its size, because no token is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config import DataError
from data.manifest import Manifest, ShardEntry, Split
from data.shard import PREPARE_AGAIN, Shard
from data.tokenizer import TOKENIZER_NAME, Tokenizer


@dataclass(frozen=True)
class Dataset:
    """One split of a prepared dataset: its shards in the manifest's order."""

    folder: Path
    manifest: Manifest
    shards: tuple[Shard, ...]
    split: Split

    def __len__(self) -> int:
        """Tokens in the split."""
        return sum(map(len, self.shards))


def open_dataset(folder: Path | str, split: Split = "train", *, rank: int = 0, world_size: int = 1) -> Dataset:
    """Open a split of the folder that `python -m data prepare` wrote.

    Ranks share the looking at files: each compares every `world_size`-th shard with the manifest, so that a thousand of
    them do not ask a shared file system for ten thousand files each at the same moment.
    Raises DataError if the folder, its manifest or a shard of this rank's share is missing, the split is empty, or a shard
    has another size than the manifest says. A shard that this rank alone lacks is found when it is first read.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    entries = manifest.splits.get(split, ())
    if not entries:
        raise DataError(
            f"{folder}: the {split} split is empty ({manifest.documents:,} documents in all); "
            "prepare again with another --split-valid or with more documents"
            + ("; or turn validation off: validation.every_steps=0" if split == "valid" else "")
        )
    shards = tuple(_described(folder, manifest, entry) for entry in entries)
    try:
        for shard in shards[rank::world_size]:
            _compare(Shard.open(shard.prefix), shard)
    except DataError as error:
        error.alone = world_size > 1
        raise
    return Dataset(folder, manifest, shards, split)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer a dataset was written with. Raises DataError if the file is not the one in the manifest."""
    manifest = Manifest.load(Path(folder))
    path = Path(folder) / TOKENIZER_NAME
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise DataError(
            f"{path}: fingerprint {tokenizer.fingerprint[:16]}, but the dataset was written with "
            f"{manifest.tokenizer_fingerprint[:16]}; put the dataset's own tokenizer back, or prepare it again"
        )
    return tokenizer


def _described(folder: Path, manifest: Manifest, entry: ShardEntry) -> Shard:
    return Shard(folder / entry.name, np.dtype(manifest.dtype), entry.tokens, entry.documents)


def _compare(found: Shard, expected: Shard) -> None:
    there, here = ((shard.dtype.name, len(shard), shard.document_count) for shard in (found, expected))
    if there != here:
        raise DataError(
            f"{found.prefix}.idx: (type, tokens, documents) {there}, but manifest.json says {here}; {PREPARE_AGAIN}"
        )
