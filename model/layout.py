"""Where documents begin and end in a batch of packed rows.

Letters: B rows, T row length, N = B x T tokens, S documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.spec import AttentionSpec


@dataclass(frozen=True)
class Layout:
    """Documents of a batch. Attention and positions stay inside each of them; without a Layout a row is one document."""

    cu_seqlens: Tensor
    """Document boundaries in the flattened batch, int32 [S + 1], from 0 to N."""
    max_seqlen: int
    """Length of the longest document, in tokens."""
    positions_BT: Tensor
    """Position of each token in its document, int64."""
    document_ids_BT: Tensor
    """Number of each token's document, int32."""
    mask_B1TS: Tensor | None = None
    """True where a query (third axis) may see a key (last axis); set once per forward pass, see Kernel.prepare, or for
    cached rows of several lengths (`newest`)."""
    block_mask: Any = None
    """The same as flex attention wants it."""
    lengths: tuple[int, ...] = ()
    """Of the documents of a single row, for kernels that go through them one by one; see `packed`."""

    @classmethod
    def from_cu_seqlens(
        cls,
        cu_seqlens: Tensor | np.ndarray | Sequence[int],
        batch: int,
        length: int,
        device: torch.device | str | None = None,
    ) -> "Layout":
        """Layout of `batch` rows of `length` tokens from document boundaries on the CPU.

        A document that runs over the end of a row is cut there: rows never see each other.
        """
        total = batch * length
        boundaries = torch.as_tensor(cu_seqlens, dtype=torch.int64)
        assert boundaries[0] == 0 and boundaries[-1] == total, f"cu_seqlens must run from 0 to {total}"
        boundaries = torch.unique(torch.cat([boundaries, torch.arange(0, total + 1, length)]))
        lengths = boundaries.diff()
        document_ids = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(lengths)
        positions = torch.arange(total) - boundaries[:-1].repeat_interleave(lengths)
        return cls(
            cu_seqlens=boundaries.to(device, torch.int32),
            max_seqlen=int(lengths.max()),
            positions_BT=positions.view(batch, length).to(device),
            document_ids_BT=document_ids.view(batch, length).to(device),
        )

    @classmethod
    def packed(cls, lengths: Sequence[int], device: Any = None) -> "Layout":
        """Layout of one row in which documents of these lengths stand one behind another."""
        bounds = list(accumulate(lengths, initial=0))
        return replace(cls.from_cu_seqlens(bounds, 1, bounds[-1], device), lengths=tuple(lengths))

    @classmethod
    def padded(cls, lengths_B: Tensor | np.ndarray | Sequence[int], length: int, device: Any = None) -> "Layout":
        """Layout of rows of one text each, padded to `length` tokens: the padding of a row is a document of its own."""
        lengths = torch.as_tensor(lengths_B, dtype=torch.int64)
        assert lengths.min() >= 1 and lengths.max() <= length, f"lengths must be from 1 to {length}"
        starts = torch.arange(len(lengths)) * length
        boundaries = torch.stack([starts, starts + lengths], dim=1).flatten()
        total = torch.tensor([len(lengths) * length])
        return cls.from_cu_seqlens(torch.cat([boundaries, total]), len(lengths), length, device)

    @classmethod
    def padded_left(cls, lengths_B: Sequence[int], length: int, device: Any = None) -> "Layout":
        """Layout of rows of one text each that end with the row: the padding before is a document of its own."""
        bounds = [row * length + at for row, tokens in enumerate(lengths_B) for at in (0, length - tokens)]
        return cls.from_cu_seqlens([*bounds, len(lengths_B) * length], len(lengths_B), length, device)

    @classmethod
    def newest(cls, positions_B1: Tensor, seen_BS: Tensor) -> "Layout":
        """Layout of one token a row at these positions of its text; of S cached keys and its own it sees those marked."""
        rows = len(positions_B1)
        bounds = torch.arange(rows + 1, dtype=torch.int32, device=positions_B1.device)
        return cls(bounds, 1, positions_B1, bounds[:-1, None], mask_B1TS=seen_BS[:, None, None])

    @classmethod
    def whole_rows(cls, rows: int, length: int, device: Any = None) -> "Layout":
        """Layout of rows of one document each."""
        return cls(
            cu_seqlens=torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=device),
            max_seqlen=length,
            positions_BT=torch.arange(length, device=device).expand(rows, -1),
            document_ids_BT=torch.arange(rows, dtype=torch.int32, device=device).unsqueeze(1).expand(-1, length),
        )


def document_numbers(layout: Layout | None, keys: Layout | None, queries: int) -> tuple[Tensor, Tensor]:
    """Numbers of the queries' [B, T] and the keys' [B, S] documents, equal where a query may see a key.

    In cross-attention the nth document of a row of queries sees the nth document of the same row of keys, or its last
    one if it has fewer, as a padded row may. Without a layout a row of queries is one document.
    """
    if keys is None:
        assert layout is not None
        return layout.document_ids_BT, layout.document_ids_BT
    k_BS = keys.document_ids_BT - keys.document_ids_BT[:, :1]
    if layout is None:
        return k_BS.new_zeros(len(k_BS), queries), k_BS
    q_BT = layout.document_ids_BT - layout.document_ids_BT[:, :1]
    return q_BT.minimum(k_BS[:, -1:]), k_BS


def dense_mask(
    spec: AttentionSpec, layout: Layout | None, keys: Layout | None, queries: int, length: int, device: torch.device
) -> Tensor:
    """True where a query may see a key, [B, 1, T, S], or [1, 1, T, S] if it is the same for all rows. Of `length` keys."""
    holder = keys or layout
    if holder is not None and holder.mask_B1TS is not None:
        return holder.mask_B1TS
    visible = visible_keys(spec, queries, length, device)[None, None]
    if holder is None:
        return visible
    q_BT, k_BS = document_numbers(layout, keys, queries)
    return (q_BT[:, None, :, None] == k_BS[:, None, None, :]) & visible


def visible_keys(spec: AttentionSpec, queries: int, keys: int, device: torch.device) -> Tensor:
    """True where a query (row) may see a key (column) of its row, [T, S]. The last query stands at the last key."""
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device)
    last = keys - queries
    if spec.causal:
        visible = visible.tril(last)
        return visible if spec.window is None else visible.triu(last - spec.window + 1)
    return visible if spec.window is None else visible.tril(last + spec.window).triu(last - spec.window)
