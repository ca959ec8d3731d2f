"""A prepared dataset, opened for reading: cheap, whatever its size, because no token is read."""

from dataclasses import dataclass
from pathlib import Path

from config import DataError
from data.manifest import Manifest, ShardEntry, Split
from data.shard import PREPARE_AGAIN, Shard
from data.tokenizer import TOKENIZER_NAME, Tokenizer

MOST_OPEN_FILES = 1 << 20


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


def open_dataset(folder: Path | str, split: Split = "train") -> Dataset:
    """Open a split of the folder that `python -m data prepare` wrote.

    Raises DataError if the folder, its manifest or a shard is missing, the split is empty, or a shard has another size
    than the manifest says.
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
    _allow_open_files()
    return Dataset(folder, manifest, tuple(_open_shard(folder, manifest, entry) for entry in entries), split)


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


def _open_shard(folder: Path, manifest: Manifest, entry: ShardEntry) -> Shard:
    shard = Shard.open(folder / entry.name)
    found = (shard.dtype.name, len(shard), shard.document_count)
    expected = (manifest.dtype, entry.tokens, entry.documents)
    if found != expected:
        raise DataError(
            f"{shard.prefix}.idx: (type, tokens, documents) {found}, but manifest.json says {expected}; {PREPARE_AGAIN}"
        )
    return shard


def _allow_open_files() -> None:
    """Raise the soft limit on open files to the hard one: each mapped `.bin` and `.idx` holds one descriptor."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
