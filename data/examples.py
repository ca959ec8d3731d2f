"""Labelled examples as a stream: the same order, cursor and micro-batches as text, padded instead of cut."""

import numpy as np
from numpy.typing import NDArray

from config.schema import RunConfig
from config.supervised_schema import Instruction, Regression, SequenceToSequence
from data.batch import IGNORE, Batch, Collate, sequences
from data.example_rows import example_specials
from data.example_table import ExampleTable, Ragged, open_table, pack
from data.labelled import labelled_stream, rounded
from data.source import read_tokenizer
from data.specials import BERT, T5
from data.stream import Stream
from data.tokenizer import Tokenizer
from data.validation import fixed_batches

Ids = NDArray[np.int64]


class ExampleRows:
    """The rows of one file, addressed as those of shards are: (0, number of the row)."""

    def __init__(self, table: ExampleTable, config: RunConfig):
        self.table, self.row_length = table, config.data.row_length
        packed = isinstance(config.objective, Instruction) and config.objective.packing
        self.rows = pack(table.ids.lengths - 1, self.row_length) if packed else None
        self.names, self.count_K = [table.path], np.array([len(self)])

    def __len__(self) -> int:
        return len(self.table) if self.rows is None else len(self.rows.lengths)

    def locate(self, dataset_N: Ids, row_N: Ids) -> Ids:
        return np.stack([dataset_N, row_N], axis=1)

    def describe(self, shard: int, begin: int) -> str:
        return f"{self.table.path}, example {int(self.examples(begin)[0]) + 1:,}"

    def examples(self, row: int) -> NDArray:
        """Numbers of the examples in a row."""
        return np.array([row]) if self.rows is None else self.rows[row]


def examples_tokenizer(config: RunConfig) -> Tokenizer:
    """That of `data.examples.tokenizer` or else of the model that the run starts from, with the special tokens of the rows."""
    assert config.data.examples is not None
    tokenizer = read_tokenizer(config.data.examples.tokenizer or config.run.start_from)
    return tokenizer.with_special_tokens(example_specials(config.model.family, config.objective))


def open_example_stream(config: RunConfig, tokenizer: Tokenizer, *, rank: int = 0, world_size: int = 1) -> Stream:
    """The training examples of a recipe. Raises DataError as `open_table` does."""
    assert config.data.examples is not None
    rows = ExampleRows(open_table(config.data.examples.train, config, tokenizer), config)
    collate = collate_examples(rows, config, tokenizer)
    return labelled_stream(rows, rows.table.hash, collate, config, rank=rank, world_size=world_size)


def open_held_out_examples(config: RunConfig, *, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """One rank's batches of all examples to validate on. Raises DataError as `open_table` does."""
    assert config.data.examples is not None
    tokenizer = examples_tokenizer(config)
    table = open_table(config.data.examples.valid, config, tokenizer)
    micro_batch_size = config.batch.micro_batch_size
    return batches_in_order(table, config, tokenizer, micro_batch_size, rank=rank, world_size=world_size)


def batches_in_order(
    table: ExampleTable, config: RunConfig, tokenizer: Tokenizer, size: int, *, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """One rank's batches of `size` rows, in the file's order; over the ranks each example counts once."""
    rows = ExampleRows(table, config)
    number_N = np.arange(len(rows))
    address_N2 = rows.locate(np.zeros_like(number_N), number_N)
    return fixed_batches(collate_examples(rows, config, tokenizer), address_N2, size, rank=rank, world_size=world_size)


def collate_examples(rows: ExampleRows, config: RunConfig, tokenizer: Tokenizer) -> Collate:
    """How the objective reads its examples."""
    objective, family = config.objective, config.model.family
    pad_id = tokenizer.ids_of([(BERT if family == "bert" else T5)[0]])[0] if family != "gpt" else tokenizer.eod_id
    if isinstance(objective, Instruction):
        return lambda address_B2, sample_B: answers(rows, address_B2[:, 1].tolist(), pad_id)
    if isinstance(objective, SequenceToSequence):
        lengths = rows.row_length, objective.target_length
        return lambda address_B2, sample_B: translations(rows.table, address_B2[:, 1].tolist(), pad_id, *lengths)
    label_type = np.float32 if isinstance(objective, Regression) else np.int64
    return lambda address_B2, sample_B: labelled(
        rows.table, address_B2[:, 1].tolist(), pad_id, rows.row_length, label_type, family == "bert", objective.name
    )


def labelled(
    table: ExampleTable, numbers: list[int], pad_id: int, longest: int, label_type: type, types: bool, part: str
) -> Batch:
    token_BT, lengths_B = padded(table.ids, numbers, pad_id, longest, np.int64)
    labels_BT, _ = padded(table.labels, numbers, IGNORE, longest, label_type)
    token_types_BT = None
    if types:
        second_B, place_T = table.second_N[numbers], np.arange(token_BT.shape[1])
        second_BT = (place_T >= second_B[:, None]) & (place_T < lengths_B[:, None]) & (second_B[:, None] > 0)
        token_types_BT = second_BT.astype(np.int64)
    return Batch(token_BT, labels_BT, lengths_B=lengths_B, token_types_BT=token_types_BT, parts=(part,))


def translations(table: ExampleTable, numbers: list[int], pad_id: int, longest: int, longest_target: int) -> Batch:
    """What the decoder writes, and reads one place later after a start token, which is T5's padding."""
    source_BS, source_lengths_B = padded(table.source, numbers, pad_id, longest, np.int64)
    labels_BT, _ = padded(table.labels, numbers, IGNORE, longest_target, np.int64)
    tokens_BT = np.full_like(labels_BT, pad_id)
    tokens_BT[:, 1:] = np.where(labels_BT[:, :-1] == IGNORE, pad_id, labels_BT[:, :-1])
    return Batch(tokens_BT, labels_BT, source_BS=source_BS, source_lengths_B=source_lengths_B)


def answers(rows: ExampleRows, numbers: list[int], pad_id: int) -> Batch:
    """Rows of one or more examples that do not see each other; each token is predicted from those before it in its own."""
    packs = [rows.examples(row).tolist() for row in numbers]
    table = rows.table
    filled = max(sum(len(table.ids[one]) - 1 for one in pack_) for pack_ in packs)
    length = rounded(filled, rows.row_length)
    tokens_BT = np.full((len(packs), length), pad_id, np.int64)
    labels_BT = np.full_like(tokens_BT, IGNORE)
    starts = []
    for row, pack_ in enumerate(packs):
        place = 0
        for one in pack_:
            ids, labels = table.ids[one], table.labels[one]
            end = place + len(ids) - 1
            tokens_BT[row, place:end], labels_BT[row, place:end] = ids[:-1], labels[1:]
            place = end
            starts.append(row * length + end)
    cu_seqlens, max_seqlen = sequences(tokens_BT.shape, np.array(starts))
    return Batch(tokens_BT, labels_BT, cu_seqlens, max_seqlen)


def padded(lists: Ragged, numbers: list[int], filling: int, longest: int, dtype: type) -> tuple[NDArray, Ids]:
    """Lists of a table as rows [B, T] filled up to a common length, and their own lengths [B]."""
    lengths_B = lists.lengths[numbers]
    value_BT: NDArray = np.full((len(numbers), rounded(int(lengths_B.max()), longest)), filling, dtype)
    for value_T, number, length in zip(value_BT, numbers, lengths_B.tolist(), strict=True):
        value_T[:length] = lists[number]
    return value_BT, lengths_B
