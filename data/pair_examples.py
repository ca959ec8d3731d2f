"""Labelled pairs as a stream: the same order, cursor and micro-batches as text, for contrastive training."""

import numpy as np
from numpy.typing import NDArray

from config.contrastive_schema import ContrastivePairs
from config.objective_schema import row_shape
from config.schema import RunConfig
from data.batch import Batch, Collate
from data.draw import draw
from data.example_files import content_hash
from data.labelled import labelled_stream, rounded
from data.order import Order, derive_key
from data.pair_files import Pair, PairRows
from data.similar import similar_rows
from data.source import read_tokenizer
from data.specials import BERT
from data.stream import Stream
from data.tokenizer import Tokenizer
from data.validation import FIXED_SEED, fixed_batches

Ids = NDArray[np.int64]


def pairs_tokenizer(config: RunConfig) -> Tokenizer:
    """That of `data.pairs.tokenizer` or else of the model that the run starts from, with the special tokens of the rows."""
    assert config.data.pairs is not None
    return read_tokenizer(config.data.pairs.tokenizer or config.run.start_from).with_special_tokens(BERT)


def open_pair_stream(config: RunConfig, tokenizer: Tokenizer, *, rank: int = 0, world_size: int = 1) -> Stream:
    """The training pairs of a recipe. Raises DataError as `PairRows` does."""
    assert config.data.pairs is not None
    path = config.data.pairs.train
    rows = _open_rows(path, config, rank, world_size)
    collate = collate_pairs(rows, config, tokenizer, config.run.seed)
    return labelled_stream(rows, content_hash(path), collate, config, rank=rank, world_size=world_size)


def open_held_out_pairs(config: RunConfig, *, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """One rank's batches of up to `validation.rows` pairs, the same in every run; over the ranks each counts once."""
    assert config.data.pairs is not None
    path = config.data.pairs.valid
    rows = _open_rows(path, config, rank, world_size)
    (count,) = rows.count_K.tolist()
    index = np.arange(min(count, config.validation.rows))
    row = Order(count, derive_key(FIXED_SEED, content_hash(path), 0))(index)
    collate = collate_pairs(rows, config, pairs_tokenizer(config), FIXED_SEED)
    address_N2 = rows.locate(np.zeros_like(row), row)
    return fixed_batches(collate, address_N2, config.batch.micro_batch_size, rank=rank, world_size=world_size)


def collate_pairs(rows: PairRows, config: RunConfig, tokenizer: Tokenizer, seed: int) -> Collate:
    objective = config.objective
    assert isinstance(objective, ContrastivePairs)
    return labelled_rows(rows, objective, tokenizer, derive_key(seed, objective.name, 0), config.data.row_length)


def _open_rows(path: str, config: RunConfig, rank: int, world_size: int) -> PairRows:
    objective = config.objective
    assert isinstance(objective, ContrastivePairs)
    text = row_shape(objective, config.data.row_length).text
    return PairRows(path, text, objective.hard_negatives, rank, world_size)


def labelled_rows(
    rows: PairRows, objective: ContrastivePairs, tokenizer: Tokenizer, key: int, row_length: int
) -> Collate:
    """For B pairs B rows [CLS] anchor [SEP] and padding, then B positives, then as many hard negatives of each number.

    Texts are cut to row_length - 2 tokens. Of more negatives than asked for, a pair's are drawn without repetition.
    """
    pad_id, cls_id, sep_id, _ = tokenizer.ids_of(BERT)

    def chosen(pair: Pair, sample: int) -> list[str]:
        words = draw(key, np.array([sample]), np.arange(len(pair.negatives)))
        order = np.argsort(words, kind="stable") if len(words) > objective.hard_negatives else range(len(words))
        return [pair.negatives[place] for place in order[: objective.hard_negatives]]

    def collate(address_B2: Ids, sample_B: Ids) -> Batch:
        pairs = [rows[number] for number in address_B2[:, 1].tolist()]
        texts_B = [
            [pair.anchor, pair.positive, *chosen(pair, sample)]
            for pair, sample in zip(pairs, sample_B.tolist(), strict=True)
        ]
        texts = [text for side in zip(*texts_B, strict=True) for text in side]
        ids = [np.array([cls_id, *ids[: row_length - 2], sep_id]) for ids in tokenizer.encode_batch(texts)]
        length = rounded(max(map(len, ids)), row_length)
        return similar_rows(ids, len(pairs), length, pad_id, objective.mask_duplicates)

    return collate
