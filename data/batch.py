"""What one forward pass reads: rows cut into inputs and labels."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.pack import Rows

IGNORE = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B rows of T tokens.

    Plain causal rows are views of one array: write to none.
    """

    tokens_BT: NDArray[np.int64]
    """What the model reads; the decoder's inputs if there is a source."""
    labels_BT: NDArray[np.int64] | None
    """What it shall predict at each position, or IGNORE; in causal rows the token that follows."""
    cu_seqlens: NDArray[np.int32] | None = None
    """Where each sequence begins in the flattened rows, and B * T at the end. None: each row is one sequence."""
    max_seqlen: int = 0
    """Tokens in the longest sequence, where there are cu_seqlens."""
    lengths_B: NDArray[np.int64] | None = None
    """Tokens of each row before its padding. None: rows are full, or padded where no label and no token looks."""
    token_types_BT: NDArray[np.int64] | None = None
    """0 in the first text of a pair, 1 in the second."""
    pair_labels_B: NDArray[np.int64] | None = None
    """Class of each pair, or IGNORE. Of texts that belong together one for each anchor."""
    text_ids_B: NDArray[np.int64] | None = None
    """A number of each row's text: equal texts have equal ones."""
    source_BS: NDArray[np.int64] | None = None
    """What an encoder reads."""
    source_lengths_B: NDArray[np.int64] | None = None
    """Tokens of each source before its padding. None: sources are full."""
    parts: tuple[str, ...] = ("lm",)
    """Names of the losses, first of labels_BT, then of pair_labels_B."""

    def targets(self) -> dict[str, int]:
        """For each part of the loss the number of targets that count towards it."""
        labels = [array for array in (self.labels_BT, self.pair_labels_B) if array is not None]
        return {part: int(np.count_nonzero(array != IGNORE)) for part, array in zip(self.parts, labels, strict=True)}

    def without(self, filler_B: NDArray[np.bool_]) -> "Batch":
        """The batch with rows that are read but do not count."""
        labels_BT, pair_labels_B = self.labels_BT, self.pair_labels_B
        if labels_BT is not None:
            labels_BT = np.where(filler_B[:, None], IGNORE, labels_BT)
        if pair_labels_B is not None:
            pair_labels_B = np.where(filler_B, IGNORE, pair_labels_B)
        return replace(self, labels_BT=labels_BT, pair_labels_B=pair_labels_B)


Collate = Callable[[NDArray[np.int64], NDArray[np.int64]], Batch]
"""Makes the batch of addresses [B, 2], which are global samples [B]. What is drawn at random depends on these alone."""


def causal_rows(rows: Rows, document_masking: bool) -> Collate:
    """Each token is predicted from those before it, across documents or inside each."""

    def collate(address_B2: NDArray[np.int64], sample_B: NDArray[np.int64]) -> Batch:
        token_BS = rows.read(address_B2)
        if document_masking:
            return mask_documents(token_BS, rows.document_starts(address_B2))
        return Batch(token_BS[:, :-1], token_BS[:, 1:], None, rows.row_length)

    return collate


def read_batches(
    collate: Collate, address_N2: NDArray[np.int64], sample_N: NDArray[np.int64], micro_batch_size: int
) -> list[Batch]:
    """Samples in micro-batches. Raises DataError at a token id outside the model's vocabulary."""
    return [
        collate(address_N2[first : first + micro_batch_size], sample_N[first : first + micro_batch_size])
        for first in range(0, len(address_N2), micro_batch_size)
    ]


def mask_documents(token_BS: NDArray[np.int64], starts: NDArray[np.int64]) -> Batch:
    """Inputs and labels of rows of S = T + 1 tokens in which each document is a sequence of its own.

    `starts` are the places in the flattened labels [B * T] where a document starts: its first token is not predicted from
    the last one of the document before.
    """
    labels_BT = token_BS[:, 1:].copy()
    labels_BT.reshape(-1)[starts] = IGNORE
    cu_seqlens, max_seqlen = sequences(labels_BT.shape, starts + 1)
    return Batch(token_BS[:, :-1], labels_BT, cu_seqlens, max_seqlen)


def sequences(shape: tuple[int, ...], starts: NDArray[np.int64]) -> tuple[NDArray[np.int32], int]:
    """cu_seqlens of rows of a shape [B, T] that are cut at `starts` in the flattened tokens, and the longest sequence."""
    rows, row_length = shape
    assert rows * row_length < 2**31
    row_bounds = np.arange(0, rows * row_length + 1, row_length)
    cu_seqlens = np.union1d(row_bounds, starts).astype(np.int32)
    return cu_seqlens, int(np.diff(cu_seqlens).max())
