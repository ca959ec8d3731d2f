"""Batches of texts that belong together: for B samples B anchors, then their B positives, then any hard negatives of each."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.batch import Batch
from data.passages import padded

Ids = NDArray[np.int64]


def similar_rows(texts: list[Ids], samples: int, row_length: int, pad_id: int, identify: bool) -> Batch:
    """The batch of rows in that order. `identify`: with a number for each text, so that equal ones are found."""
    token_BT, lengths_B = padded(texts, row_length, pad_id)
    text_ids_B = np.array([_number(ids) for ids in texts], np.int64) if identify else None
    return Batch(
        token_BT,
        None,
        lengths_B=lengths_B,
        pair_labels_B=np.arange(samples),
        text_ids_B=text_ids_B,
        parts=("contrastive",),
    )


def join_similar(batches: Sequence[Batch]) -> Batch:
    """One batch of several: all anchors, then all positives, and so on. What ranks that see each other's rows see."""
    first = batches[0]
    assert first.pair_labels_B is not None
    sides = len(first.tokens_BT) // len(first.pair_labels_B)
    tokens_BT = [batch.tokens_BT for batch in batches]
    longest = max(tokens.shape[1] for tokens in tokens_BT)

    def join(arrays: list[Ids]) -> Ids:
        parts = [np.split(array, sides) for array in arrays]
        return np.concatenate([part for side in zip(*parts, strict=True) for part in side])

    return Batch(
        join([np.pad(tokens, ((0, 0), (0, longest - tokens.shape[1]))) for tokens in tokens_BT]),
        None,
        lengths_B=join([batch.lengths_B for batch in batches if batch.lengths_B is not None]),
        pair_labels_B=np.concatenate([batch.pair_labels_B for batch in batches if batch.pair_labels_B is not None]),
        text_ids_B=None
        if first.text_ids_B is None
        else join([batch.text_ids_B for batch in batches if batch.text_ids_B is not None]),
        parts=first.parts,
    )


def _number(ids: Ids) -> int:
    """63 bits of BLAKE2b, so that two different texts hardly ever share one."""
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=8).digest(), "little") >> 1
