"""The held-out rows: the same in every run, at every validation, on any number of ranks."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from config.schema import DataSection
from data.batch import IGNORE, Batch, read_batches
from data.blend import Blend
from data.order import Order, derive_key
from data.pack import Rows
from data.stream import open_datasets

FIXED_SEED = 0


def open_validation(
    data: DataSection, *, rows: int, micro_batch_size: int, vocab_size: int, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """One rank's batches of `rows` rows of the validation splits, shared out by the datasets' weights.

    A split with fewer rows than its share gives all it has. The rows do not depend on the run's seed. Raises as
    `open_stream`.
    """
    datasets = open_datasets(data, "valid")
    table = Rows([dataset.shards for dataset in datasets], data.row_length, vocab_size, "valid")
    shares = Blend([dataset.weight for dataset in data.datasets]).counts(rows)
    addresses = []
    for number, (dataset, count) in enumerate(zip(datasets, table.count_K.tolist(), strict=True)):
        index = np.arange(min(count, int(shares[number])))
        row = Order(count, derive_key(FIXED_SEED, dataset.manifest.hash, number))(index)
        addresses.append(table.locate(np.full_like(row, number), row))
    return fixed_batches(
        table, np.concatenate(addresses), micro_batch_size, data.document_masking, rank=rank, world_size=world_size
    )


def fixed_batches(
    table: Rows,
    address_N2: NDArray[np.int64],
    micro_batch_size: int,
    document_masking: bool,
    *,
    rank: int,
    world_size: int,
) -> list[Batch]:
    """One rank's batches of the rows at addresses.

    All ranks get the same number of batches of one shape, so that collectives meet and nothing is compiled twice. Where
    the rows do not go round, fillers whose labels are all IGNORE take their place: summed over the ranks, every row
    counts exactly once.
    """
    rank_rows = -(-len(address_N2) // world_size)
    batch_size = min(micro_batch_size, rank_rows)
    slots = -(-rank_rows // batch_size) * batch_size
    slot = rank + world_size * np.arange(slots)
    filler = slot >= len(address_N2)
    batches = read_batches(table, address_N2[np.where(filler, 0, slot)], batch_size, document_masking)
    return [
        replace(batch, labels_BT=np.where(filler_B[:, None], IGNORE, batch.labels_BT)) if filler_B.any() else batch
        for batch, filler_B in zip(batches, filler.reshape(-1, batch_size), strict=True)
    ]
