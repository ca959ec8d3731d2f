"""What one forward pass reads: rows cut into inputs and labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.pack import Rows

IGNORE = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of B rows of T tokens.

    labels_BT[b, t] is the token that follows tokens_BT[b, t], or IGNORE. Without document masking both are views of one
    array: write to neither.
    """

    tokens_BT: NDArray[np.int64]
    labels_BT: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32] | None
    """Where each sequence begins in the flattened rows, and B * T at the end. None: each row is one sequence."""
    max_seqlen: int
    """Tokens in the longest sequence."""


def read_batches(
    rows: Rows, address_N2: NDArray[np.int64], micro_batch_size: int, document_masking: bool
) -> list[Batch]:
    """The rows at addresses, in micro-batches. Raises DataError at a token id outside the model's vocabulary."""
    batches = []
    for first in range(0, len(address_N2), micro_batch_size):
        address_B2 = address_N2[first : first + micro_batch_size]
        token_BS = rows.read(address_B2)
        if document_masking:
            batches.append(mask_documents(token_BS, rows.document_starts(address_B2)))
        else:
            batches.append(Batch(token_BS[:, :-1], token_BS[:, 1:], None, rows.row_length))
    return batches


def mask_documents(token_BS: NDArray[np.int64], starts: NDArray[np.int64]) -> Batch:
    """Inputs and labels of rows of S = T + 1 tokens in which each document is a sequence of its own.

    `starts` are the places in the flattened labels [B * T] where a document starts: its first token is not predicted from
    the last one of the document before.
    """
    rows, row_length = token_BS.shape[0], token_BS.shape[1] - 1
    assert rows * row_length < 2**31
    labels_BT = token_BS[:, 1:].copy()
    labels_BT.reshape(-1)[starts] = IGNORE
    row_bounds = np.arange(0, rows * row_length + 1, row_length)
    cu_seqlens = np.union1d(row_bounds, starts + 1).astype(np.int32)
    return Batch(token_BS[:, :-1], labels_BT, cu_seqlens, int(np.diff(cu_seqlens).max()))
