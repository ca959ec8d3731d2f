"""The end of a preparation: duplicates leave, shards get their final names, the manifest is written last."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from config import DataError
from data.manifest import MANIFEST_NAME, SPLITS, ShardEntry, Splits
from data.shard import Shard, ShardWriter
from data.unit import UnitResult, load_documents, load_result

HASHES_AT_ONCE = 1 << 24
SHARD_FILE = re.compile(r"(train|valid)-\d{5}\.(bin|idx)")


def collect(partial: Path, folder: Path, unit_count: int, keep_duplicates: bool) -> tuple[Splits, dict[str, int]]:
    """Bring all units' shards to the final folder; returns the splits' entries and the dropped documents by reason.

    Can be killed at any point and called again. Raises DataError if no document was kept.
    """
    results = [load_result(partial, number) for number in range(unit_count)]
    dropped = sum((Counter(result.dropped) for result in results), Counter[str]())
    if not any("train" in result.shards for result in results):
        shutil.rmtree(partial)
        raise _empty(results, dropped)
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    splits: Splits = {}
    for split in SPLITS:
        entries = [result.shards[split] for result in results if split in result.shards]
        documents = [load_documents(partial, entry.name) for entry in entries]
        keep = [np.ones(entry.documents, bool) for entry in entries]
        if not keep_duplicates:
            keep = first_occurrences([hashes for hashes, _ in documents])
        splits[split] = tuple(
            _move(entry, partial, folder) if kept.all() else _rewrite(entry, kept, sizes, partial, folder)
            for entry, kept, (_, sizes) in zip(entries, keep, documents, strict=True)
            if kept.any()
        )
        dropped["duplicate"] += sum(int((~kept).sum()) for kept in keep)
    return splits, dict(+dropped)


def clear(folder: Path, partial: Path, splits: Splits) -> None:
    """Remove what a finished dataset no longer needs: the units' records and shards of an earlier dataset."""
    names = {entry.name for entries in splits.values() for entry in entries}
    for path in folder.iterdir():
        if SHARD_FILE.fullmatch(path.name) and path.stem not in names:
            path.unlink()
    shutil.rmtree(partial, ignore_errors=True)


def first_occurrences(hashes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each array of document hashes, which documents are the first with their hash, over all arrays in order.

    Works on one residue class of hashes at a time, so that memory is bounded (about 1 GB) for any number of documents.
    Among 10^9 different documents a chance collision of 64-bit hashes costs one document in one preparation of 37.
    """
    keep = [np.ones(len(array), bool) for array in hashes]
    parts = 1 + sum(map(len, hashes)) // HASHES_AT_ONCE
    for part in range(parts):
        places = [np.flatnonzero(array % np.uint64(parts) == part) for array in hashes]
        joined = np.concatenate(
            [array[place] for array, place in zip(hashes, places, strict=True)] or [np.empty(0, np.uint64)]
        )
        later = np.ones(len(joined), bool)
        later[np.unique(joined, return_index=True)[1]] = False
        ends = np.cumsum([len(place) for place in places])[:-1]
        for kept, place, repeated in zip(keep, places, np.split(later, ends), strict=False):
            kept[place[repeated]] = False
    return keep


def _empty(results: list[UnitResult], dropped: Counter[str]) -> DataError:
    held_out = sum(entry.documents for result in results for entry in result.shards.values())
    if held_out:
        return DataError(
            f"all {held_out:,} documents fell into the valid split and none into train; "
            "prepare more documents (a .txt file is one: see --txt-documents), or lower --split-valid"
        )
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.most_common()) or "the sources hold none"
    return DataError(f"no document was kept of {dropped.total():,} ({reasons}); check the sources and --text-field")


def _move(entry: ShardEntry, partial: Path, folder: Path) -> ShardEntry:
    for suffix in ("bin", "idx"):
        name = f"{entry.name}.{suffix}"
        if (partial / name).exists():
            os.replace(partial / name, folder / name)
    return entry


def _rewrite(entry: ShardEntry, kept: np.ndarray, sizes: np.ndarray, partial: Path, folder: Path) -> ShardEntry:
    """Write a shard again without its duplicates."""
    shard = Shard.open(partial / entry.name)
    with ShardWriter(folder / entry.name, shard.dtype) as writer:
        for number in np.flatnonzero(kept):
            writer.add(shard.document(int(number)))
    return ShardEntry.of(folder / entry.name, int(sizes[kept].sum()))
