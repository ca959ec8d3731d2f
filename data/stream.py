"""The stream: which rows each step trains on, and the batches made of them.

The row of global sample g is a pure function of (seed, manifests, mixture, g), so the state of the stream is one
integer, the cursor. Ranks, micro-batches and threads only slice the global batch.
"""

from collections.abc import Callable, Generator
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from config import DataError
from config.batch_ramp import batch_size_at
from config.data_schema import DataSection
from config.objective_schema import CAUSAL_LM, ObjectiveConfig, row_shape
from config.schema import BatchSection
from data.batch import Batch, Collate, causal_rows, read_batches
from data.blend import Mixture, Phase
from data.collate import make_collate
from data.dataset import Dataset, open_dataset
from data.manifest import Split
from data.order import Order, derive_key
from data.pack import Rows
from data.prefetch import Prefetcher
from data.tokenizer import TOKENIZER_NAME

Cursor = int
"""Global samples trained on so far, which is the number of the next one."""

Step = tuple[list[Batch], Cursor]
"""The micro-batches of one rank in one step, and the cursor after it."""

ROWS_LOCATED_AT_ONCE = 4096


class Table(Protocol):
    """Rows of one or more datasets, by address."""

    names: list[str]
    count_K: NDArray[np.int64]
    row_length: int

    def locate(self, dataset_N: NDArray[np.int64], row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses [N, 2] of rows of datasets."""

    def describe(self, shard: int, begin: int) -> str:
        """A row's address in words."""


class Stream:
    """The global batches of a run, as one rank reads them.

    The step at cursor c trains on samples c to c + G - 1, where the global batch size G may depend on c; rank r takes the
    r-th of `world_size` equal slices of them, in micro-batches.
    """

    def __init__(
        self,
        rows: Table,
        order: Order,
        mixture: Mixture,
        *,
        global_batch_size: int | Callable[[Cursor], int],
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        collate: Collate | None = None,
        prefetch_steps: int = 0,
    ) -> None:
        """`order` is of all datasets of `rows`. `collate` makes the batches; plain causal rows of text without one."""
        assert 0 <= rank < world_size
        self._rows = rows
        self._order = order
        self._mixture = mixture
        self._size_at = global_batch_size if callable(global_batch_size) else lambda cursor: global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank, self._world_size = rank, world_size
        self._collate = collate or causal_rows(cast(Rows, rows), document_masking=False)
        self._prefetch_steps = prefetch_steps

    def locate(self, sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses [N, 2] of the rows that global samples train on."""
        dataset_N, index_N = self._mixture.pick(sample_N)
        return self._rows.locate(dataset_N, self._order.of(dataset_N)(index_N))

    def origin(self, cursor: Cursor, rank: int, world_size: int, number: int) -> str:
        """In words, where the text of a rank's `number`-th sample in the step at a cursor begins."""
        sample = cursor + rank * (self._size_at(cursor) // world_size) + number
        ((shard, begin),) = self.locate(np.array([sample])).tolist()
        return f"sample {sample:,}, {self._rows.describe(shard, begin)}"

    def step(self, cursor: Cursor) -> Step:
        """The step at a cursor."""
        return next(self._walk(cursor, steps_located_at_once=1))

    def steps(self, cursor: Cursor) -> Prefetcher[Step] | Generator[Step, None, None]:
        """All steps from a cursor on, without end, prepared by a thread if `prefetch_steps` > 0. `close()` stops it."""
        walk = self._walk(cursor, max(1, ROWS_LOCATED_AT_ONCE * self._world_size // self._size_at(cursor)))
        return Prefetcher(walk, self._prefetch_steps) if self._prefetch_steps else walk

    def describe(self, samples: int) -> str:
        """For each dataset its rows, its share of a run of so many samples, and how often the run goes through it."""
        counts = zip(self._rows.names, self._rows.count_K.tolist(), self._mixture.counts(samples).tolist(), strict=True)
        return "\n".join(
            f"{name}: {rows:,} rows of {self._rows.row_length:,} tokens, {given / samples:.1%} of the run, "
            f"{given / rows:.2f} epochs"
            for name, rows, given in counts
        )

    def _walk(self, cursor: Cursor, steps_located_at_once: int) -> Generator[Step, None, None]:
        while True:
            samples, cursors = [], []
            for _ in range(steps_located_at_once):
                size = self._size_at(cursor)
                mine = size // self._world_size
                assert size == mine * self._world_size and mine % self._micro_batch_size == 0
                samples.append(cursor + self._rank * mine + np.arange(mine))
                cursor += size
                cursors.append(cursor)
            address_N2 = self.locate(np.concatenate(samples))
            ends = np.cumsum([len(sample_R) for sample_R in samples])
            for sample_R, address_R2, after in zip(samples, np.split(address_N2, ends[:-1]), cursors, strict=True):
                yield read_batches(self._collate, address_R2, sample_R, self._micro_batch_size), after


def open_stream(
    data: DataSection,
    batch: BatchSection,
    objective: ObjectiveConfig = CAUSAL_LM,
    *,
    seed: int,
    vocab_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> Stream:
    """The training stream of a recipe. No token is read before the first step.

    Raises DataError if a dataset is missing, damaged, shorter than one row, or tokenised otherwise than the first;
    ConfigError if the mixture cannot be blended.
    """
    datasets = open_datasets(data, "train", rank, world_size)
    text = row_shape(objective, data.row_length).text
    rows = Rows([dataset.shards for dataset in datasets], text, vocab_size)
    keys = [derive_key(seed, dataset.manifest.hash, number) for number, dataset in enumerate(datasets)]
    order = Order(
        rows.count_K, np.array(keys, np.uint64), data.shuffle, data.shuffle_block_rows, data.shuffle_window_blocks
    )
    phases = [Phase(0, [dataset.weight for dataset in data.datasets])]
    phases += [Phase(-(-phase.from_tokens // text), phase.weights) for phase in data.mixture_schedule]
    return Stream(
        rows,
        order,
        Mixture(phases),
        global_batch_size=lambda cursor: batch_size_at(batch, cursor, text),
        micro_batch_size=batch.micro_batch_size,
        rank=rank,
        world_size=world_size,
        collate=make_collate(rows, data, objective, seed),
        prefetch_steps=data.prefetch_steps,
    )


def open_datasets(data: DataSection, split: Split, rank: int, world_size: int) -> list[Dataset]:
    """A split of each dataset of the mixture; ranks share the looking at files as in `open_dataset`.

    Raises DataError if one is missing or tokenised otherwise than the first.
    """
    datasets = [open_dataset(dataset.path, split, rank=rank, world_size=world_size) for dataset in data.datasets]
    first = datasets[0]
    for dataset in datasets[1:]:
        fingerprints = [one.manifest.tokenizer_fingerprint for one in (first, dataset)]
        if fingerprints[0] != fingerprints[1]:
            raise DataError(
                f"{dataset.folder}: written with tokenizer {fingerprints[1][:16]}, but {first.folder} with "
                f"{fingerprints[0][:16]}; prepare it again with --tokenizer {first.folder / TOKENIZER_NAME}"
            )
    return datasets
