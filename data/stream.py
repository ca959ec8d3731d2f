"""The stream: which rows each step trains on, and the batches made of them.

The row of global sample g is a pure function of (seed, manifests, mixture, g), so the state of the stream is one
integer, the cursor. Ranks, micro-batches and threads only slice the global batch.
"""

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from config import DataError
from config.objective_schema import CAUSAL_LM, ObjectiveConfig, row_shape
from config.schema import BatchSection, DataSection
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


class Stream:
    """The global batches of a run, as one rank reads them.

    The step at cursor c trains on samples c to c + G - 1; rank r takes the r-th of `world_size` equal slices of them,
    in micro-batches.
    """

    def __init__(
        self,
        rows: Rows,
        orders: Sequence[Order],
        mixture: Mixture,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        collate: Collate | None = None,
        prefetch_steps: int = 0,
    ) -> None:
        """`collate` makes the batches; plain causal rows without one."""
        assert global_batch_size % (world_size * micro_batch_size) == 0 and 0 <= rank < world_size
        self._rows = rows
        self._orders = orders
        self._mixture = mixture
        self._global_batch_size = global_batch_size
        self._micro_batch_size = micro_batch_size
        self._rank_rows = global_batch_size // world_size
        self._rank = rank
        self._collate = collate or causal_rows(rows, document_masking=False)
        self._prefetch_steps = prefetch_steps

    def locate(self, sample_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Addresses [N, 2] of the rows that global samples train on."""
        dataset_N, index_N = self._mixture.pick(sample_N)
        row_N = np.empty_like(index_N)
        for dataset in np.unique(dataset_N):
            here = dataset_N == dataset
            row_N[here] = self._orders[dataset](index_N[here])
        return self._rows.locate(dataset_N, row_N)

    def step(self, cursor: Cursor) -> Step:
        """The step at a cursor."""
        return next(self._walk(cursor, steps_located_at_once=1))

    def steps(self, cursor: Cursor) -> Prefetcher[Step] | Generator[Step, None, None]:
        """All steps from a cursor on, without end, prepared by a thread if `prefetch_steps` > 0. `close()` stops it."""
        walk = self._walk(cursor, max(1, ROWS_LOCATED_AT_ONCE // self._rank_rows))
        return Prefetcher(walk, self._prefetch_steps) if self._prefetch_steps else walk

    def describe(self, steps: int) -> str:
        """For each dataset its rows, its share of a run of `steps`, and how often the run goes through it."""
        samples = steps * self._global_batch_size
        counts = zip(self._rows.names, self._rows.count_K.tolist(), self._mixture.counts(samples).tolist(), strict=True)
        return "\n".join(
            f"{name}: {rows:,} rows of {self._rows.row_length:,} tokens, {given / samples:.1%} of the run, "
            f"{given / rows:.2f} epochs"
            for name, rows, given in counts
        )

    def _walk(self, cursor: Cursor, steps_located_at_once: int) -> Generator[Step, None, None]:
        first_S1 = np.arange(steps_located_at_once)[:, None] * self._global_batch_size
        offset_R = self._rank * self._rank_rows + np.arange(self._rank_rows)
        while True:
            sample_SR = cursor + first_S1 + offset_R
            address_SR2 = self.locate(sample_SR.reshape(-1)).reshape(*sample_SR.shape, 2)
            for address_R2, sample_R in zip(address_SR2, sample_SR, strict=True):
                cursor += self._global_batch_size
                yield read_batches(self._collate, address_R2, sample_R, self._micro_batch_size), cursor


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
    datasets = open_datasets(data, "train")
    text = row_shape(objective, data.row_length).text
    rows = Rows([dataset.shards for dataset in datasets], text, vocab_size)
    keys = [derive_key(seed, dataset.manifest.hash, number) for number, dataset in enumerate(datasets)]
    orders = [
        Order(count, key, data.shuffle, data.shuffle_block_rows, data.shuffle_window_blocks)
        for count, key in zip(rows.count_K.tolist(), keys, strict=True)
    ]
    phases = [Phase(0, [dataset.weight for dataset in data.datasets])]
    phases += [Phase(-(-phase.from_tokens // text), phase.weights) for phase in data.mixture_schedule]
    return Stream(
        rows,
        orders,
        Mixture(phases),
        global_batch_size=batch.global_batch_size,
        micro_batch_size=batch.micro_batch_size,
        rank=rank,
        world_size=world_size,
        collate=make_collate(rows, data, objective, seed),
        prefetch_steps=data.prefetch_steps,
    )


def open_datasets(data: DataSection, split: Split) -> list[Dataset]:
    """A split of each dataset of the mixture. Raises DataError if one is missing or tokenised otherwise than the first."""
    datasets = [open_dataset(dataset.path, split) for dataset in data.datasets]
    first = datasets[0]
    for dataset in datasets[1:]:
        fingerprints = [one.manifest.tokenizer_fingerprint for one in (first, dataset)]
        if fingerprints[0] != fingerprints[1]:
            raise DataError(
                f"{dataset.folder}: written with tokenizer {fingerprints[1][:16]}, but {first.folder} with "
                f"{fingerprints[0][:16]}; prepare it again with --tokenizer {first.folder / TOKENIZER_NAME}"
            )
    return datasets
