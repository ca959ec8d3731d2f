"""One loader of the stream benchmark in a process of its own, so that imports and caches do not mix (see stream.py).

A loader is a function that does its imports and returns `start`; start(n) gives an iterator over (inputs, labels), int64
[16, 2048] each, from the n-th batch of an epoch on.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, ROW_LENGTH, VOCAB_SIZE = 16, 2048, 50_257
CORPUS_SHARD = "train"

Start = Callable[[int], Iterator[Any]]


def groundwork(folder: Path, **options: Any) -> Start:
    from config.data_schema import DataSection
    from config.schema import BatchSection
    from data.stream import open_stream

    section = {"datasets": [{"path": str(folder)}], "row_length": ROW_LENGTH, "prefetch_steps": 0, **options}
    data = DataSection.model_validate(section)
    batch = BatchSection(global_batch_size=BATCH, micro_batch_size=BATCH)

    def start(first: int) -> Iterator[Any]:
        steps = open_stream(data, batch, seed=1, vocab_size=VOCAB_SIZE).steps(first * BATCH)
        return ((micro.tokens_BT, micro.labels_BT) for (micro,), _ in steps)

    return start


def groundwork_thread(folder: Path) -> Start:
    return groundwork(folder, prefetch_steps=4)


def groundwork_masked(folder: Path) -> Start:
    return groundwork(folder, document_masking=True)


def groundwork_blocks(folder: Path) -> Start:
    return groundwork(folder, shuffle="blocks")


def grain(folder: Path) -> Start:
    import numpy as np
    from grain import MapDataset, ReadOptions

    class Source:
        def __init__(self) -> None:
            self.tokens = np.asarray(np.memmap(folder / f"{CORPUS_SHARD}.bin", np.uint16, "r"))

        def __len__(self) -> int:
            return (len(self.tokens) - 1) // ROW_LENGTH

        def __getitem__(self, row: int) -> np.ndarray:
            return self.tokens[row * ROW_LENGTH : (row + 1) * ROW_LENGTH + 1]

    def to_batch(rows: Any) -> tuple[np.ndarray, np.ndarray]:
        spans = np.stack(rows).astype(np.int64)
        return spans[:, :-1], spans[:, 1:]

    def start(first: int) -> Iterator[Any]:
        rows = MapDataset.source(Source()).shuffle(seed=1).batch(BATCH, batch_fn=to_batch)
        batches = iter(rows.to_iter_dataset(ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        batches.set_state({"next_index": first})
        return batches

    return start


def megatron(folder: Path) -> Start:
    import logging

    import numpy as np
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = VOCAB_SIZE, 0, -1, {"name": "none"}

    prefix, cache = str(folder / CORPUS_SHARD), tempfile.mkdtemp(dir=folder)
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=ROW_LENGTH, blend=([prefix], None), split="1,0,0", path_to_cache=cache,
        tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
        create_attention_mask=False,
    )  # fmt: skip

    def start(first: int) -> Iterator[Any]:
        indexed = IndexedDataset(prefix)
        documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
        dataset = GPTDataset(indexed, prefix, documents, None, Split.train, config)
        for number in range(first, len(dataset) // BATCH):
            rows = [dataset[row] for row in range(number * BATCH, (number + 1) * BATCH)]
            yield torch.stack([row["tokens"] for row in rows]), torch.stack([row["labels"] for row in rows])

    return start


def with_replacement(folder: Path) -> Start:
    """The loop known from nanoGPT: rows at random places, not an epoch."""
    import numpy as np

    def start(first: int) -> Iterator[Any]:
        tokens = np.memmap(folder / f"{CORPUS_SHARD}.bin", np.uint16, "r")
        random = np.random.default_rng(first)
        while True:
            places = random.integers(0, len(tokens) - ROW_LENGTH, BATCH)
            inputs = np.stack([tokens[place : place + ROW_LENGTH].astype(np.int64) for place in places])
            labels = np.stack([tokens[place + 1 : place + 1 + ROW_LENGTH].astype(np.int64) for place in places])
            yield inputs, labels

    return start


def copy_limit(folder: Path) -> Start:
    """No shuffle, no check, no new memory: batches copied in sequence into one array, each by one numpy call."""
    import numpy as np
    from numpy.lib.stride_tricks import sliding_window_view

    def start(first: int) -> Iterator[Any]:
        windows = sliding_window_view(np.memmap(folder / f"{CORPUS_SHARD}.bin", np.uint16, "r"), ROW_LENGTH + 1)
        rows = np.asarray(windows[::ROW_LENGTH])
        spans = np.empty((BATCH, ROW_LENGTH + 1), np.int64)
        for row in range(first * BATCH, len(rows) - BATCH + 1, BATCH):
            spans[:] = rows[row : row + BATCH]
            yield spans[:, :-1], spans[:, 1:]

    return start


LOADERS: dict[str, tuple[Callable[[Path], Start], str]] = {
    "Groundwork": (groundwork, ""),
    "Groundwork, prefetch thread": (groundwork_thread, ""),
    "Groundwork, document masking": (groundwork_masked, ""),
    "Groundwork, shuffle: blocks": (groundwork_blocks, ""),
    "grain": (grain, "pip install grain"),
    "Megatron-core GPTDataset": (megatron, "pip install --no-deps megatron-core"),
    "nanoGPT's loop (with replacement)": (with_replacement, ""),
    "copy limit": (copy_limit, ""),
}
"""Loader and the command that installs it."""


def measure(name: str, folder: Path, batches: int, passes: int) -> dict[str, Any]:
    """Seconds to import, to the first batch, and to a batch at 90 %; tokens per second of each pass; memory in MB."""
    loader, install = LOADERS[name]
    began = time.perf_counter()
    try:
        start = loader(folder)
    except ImportError:
        return {"missing": install}
    imported = time.perf_counter()
    memory_at_import = peak = anonymous_mb()
    next(iter(start(0)))
    started = time.perf_counter()
    next(iter(start(batches * 9 // 10)))
    resumed = time.perf_counter()
    rates = []
    for _ in range(passes):
        epoch = start(0)
        pass_began = time.perf_counter()
        for number in range(batches):
            inputs, labels = next(epoch)
            assert inputs.shape == labels.shape == (BATCH, ROW_LENGTH)
            if number % 1000 == 0:
                peak = max(peak, anonymous_mb())
        rates.append(batches * BATCH * ROW_LENGTH / (time.perf_counter() - pass_began))
    return {
        "import": imported - began,
        "start": started - imported,
        "resume": resumed - started,
        "memory": peak - memory_at_import,
        "rates": rates,
    }


def anonymous_mb() -> float:
    """Memory of this process that is not a mapped file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    name, folder, batches, passes = sys.argv[1:]
    print(json.dumps(measure(name, Path(folder), int(batches), int(passes))))
