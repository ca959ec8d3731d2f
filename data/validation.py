"""The held-out rows: the same in every run, at every validation, on any number of ranks."""

import numpy as np
from numpy.typing import NDArray

from config.data_schema import DataSection
from config.objective_schema import CAUSAL_LM, ObjectiveConfig, row_shape
from data.batch import Batch, Collate, read_batches
from data.blend import Blend
from data.collate import make_collate
from data.manifest import Split
from data.order import Order, derive_key
from data.pack import Rows
from data.stream import open_datasets

FIXED_SEED = 0


def open_validation(
    data: DataSection,
    objective: ObjectiveConfig = CAUSAL_LM,
    *,
    rows: int,
    micro_batch_size: int,
    vocab_size: int,
    rank: int = 0,
    world_size: int = 1,
    split: Split = "valid",
) -> list[Batch]:
    """One rank's batches of `rows` rows of the validation splits, or others, shared out by the datasets' weights.

    A split with fewer rows than its share gives all it has. Neither the rows nor what the objective draws depend on the
    run's seed. Raises as `open_stream`.
    """
    datasets = open_datasets(data, split, rank, world_size)
    text = row_shape(objective, data.row_length).text
    table = Rows([dataset.shards for dataset in datasets], text, vocab_size, split)
    shares = Blend([dataset.weight for dataset in data.datasets]).counts(rows)
    addresses = []
    for number, (dataset, count) in enumerate(zip(datasets, table.count_K.tolist(), strict=True)):
        index = np.arange(min(count, int(shares[number])))
        row = Order(count, derive_key(FIXED_SEED, dataset.manifest.hash, number))(index)
        addresses.append(table.locate(np.full_like(row, number), row))
    collate = make_collate(table, data, objective, FIXED_SEED)
    return fixed_batches(collate, np.concatenate(addresses), micro_batch_size, rank=rank, world_size=world_size)


def fixed_batches(
    collate: Collate, address_N2: NDArray[np.int64], micro_batch_size: int, *, rank: int, world_size: int
) -> list[Batch]:
    """One rank's batches of the rows at addresses.

    All ranks get the same number of batches of one shape, so that collectives meet and nothing is compiled twice. Where
    the rows do not go round, fillers that do not count take their place: summed over the ranks, every row counts exactly
    once.
    """
    rank_rows = -(-len(address_N2) // world_size)
    batch_size = min(micro_batch_size, rank_rows)
    slots = -(-rank_rows // batch_size) * batch_size
    slot = rank + world_size * np.arange(slots)
    filler = slot >= len(address_N2)
    batches = read_batches(collate, address_N2[np.where(filler, 0, slot)], slot, batch_size)
    return [
        batch.without(filler_B) if filler_B.any() else batch
        for batch, filler_B in zip(batches, filler.reshape(-1, batch_size), strict=True)
    ]
