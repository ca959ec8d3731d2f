"""What labelled examples and labelled pairs have in common as streams."""

import numpy as np

from config.batch_ramp import batch_size_at
from config.schema import RunConfig
from data.batch import Collate
from data.blend import Mixture, Phase
from data.order import Order, derive_key
from data.stream import Stream, Table

GRANULE = 32
"""Rows of a micro-batch are padded to the longest, rounded up to a multiple of this: few shapes to compile and to keep."""


def labelled_stream(
    rows: Table, content: str, collate: Collate, config: RunConfig, *, rank: int, world_size: int
) -> Stream:
    """One file's rows in the recipe's order, over and over. `content` is the file's hash, by which the order differs."""
    data, batch = config.data, config.batch
    keys = np.array([derive_key(config.run.seed, content, 0)], np.uint64)
    return Stream(
        rows,
        Order(rows.count_K, keys, data.shuffle, data.shuffle_block_rows, data.shuffle_window_blocks),
        Mixture([Phase(0, [1.0])]),
        global_batch_size=lambda cursor: batch_size_at(batch, cursor, rows.row_length),
        micro_batch_size=batch.micro_batch_size,
        rank=rank,
        world_size=world_size,
        collate=collate,
        prefetch_steps=data.prefetch_steps,
    )


def rounded(length: int, longest: int) -> int:
    """The length to which rows are padded."""
    return min(-(-length // GRANULE) * GRANULE, longest)
