"""Documents from anything the `datasets` library loads: `hf:NAME_OR_PATH[:config][:split]`, streamed."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from config import DataError

PREFIX = "hf:"


@lru_cache(maxsize=1)
def open_hub(source: str) -> Any:
    """The streamed dataset a source names; the split is `train` unless it says otherwise.

    Raises DataError if `datasets` cannot load it, offline among other reasons.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    path, config, split = parse(source)
    try:
        return datasets.load_dataset(path, config, split=split, streaming=True)
    except Exception as error:  # whatever the loader, the network or the hub raises
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{source}: `datasets` cannot load it ({type(error).__name__}: {reason}); "
            "check the name, the config and split in hf:NAME_OR_PATH[:config][:split], and the network"
        ) from error


def parse(source: str) -> tuple[str, str | None, str]:
    """Name or path, config and split; `hf:name::test` has a split and no config."""
    path, *rest = source.removeprefix(PREFIX).split(":")
    if not path or len(rest) > 2:
        raise DataError(f"{source}: write hf:NAME_OR_PATH, hf:NAME_OR_PATH:config or hf:NAME_OR_PATH:config:split")
    config, split, *_ = (*rest, "", "")
    return path, config or None, split or "train"


def shard_count(source: str) -> int:
    """Pieces that can be streamed independently."""
    return max(1, int(open_hub(source).num_shards))


def rows(source: str, shard: int) -> Iterator[dict[str, Any]]:
    """The records of one shard, in order."""
    dataset = open_hub(source)
    count = shard_count(source)
    try:
        yield from dataset.shard(num_shards=count, index=shard) if count > 1 else dataset
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{source}: reading stopped ({type(error).__name__}: {reason}); run again to continue"
        ) from error
