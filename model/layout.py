"""Where documents begin and end in a batch of packed rows.

Letters: B rows, T row length, N = B x T tokens, S documents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    mask_B1TT: Tensor | None = None
    """True where a query (third axis) may see a key (last axis); only for kernels that take a dense mask."""

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
    def padded(cls, lengths_B: Tensor | np.ndarray | Sequence[int], length: int, device: Any = None) -> "Layout":
        """Layout of rows of one text each, padded to `length` tokens: the padding of a row is a document of its own."""
        lengths = torch.as_tensor(lengths_B, dtype=torch.int64)
        assert lengths.min() >= 1 and lengths.max() <= length, f"lengths must be from 1 to {length}"
        starts = torch.arange(len(lengths)) * length
        boundaries = torch.stack([starts, starts + lengths], dim=1).flatten()
        total = torch.tensor([len(lengths) * length])
        return cls.from_cu_seqlens(torch.cat([boundaries, total]), len(lengths), length, device)

    def with_mask(self, spec: AttentionSpec) -> "Layout":
        """The same layout with the dense mask of one kind of self-attention: inside a document, as the spec says."""
        ids = self.document_ids_BT
        same_document = ids[:, :, None] == ids[:, None, :]
        return replace(
            self, mask_B1TT=(same_document & visible_keys(spec, *ids.shape[1:] * 2, ids.device)).unsqueeze(1)
        )

    def with_source_mask(self) -> "Layout":
        """The same layout with the dense mask [B, 1, 1, S] of attention from other tokens: they see the first document of
        each row, which is the text of a padded one."""
        ids = self.document_ids_BT
        return replace(self, mask_B1TT=(ids == ids[:, :1])[:, None, None, :])


def visible_keys(spec: AttentionSpec, queries: int, keys: int, device: torch.device) -> Tensor:
    """True where a query (row) may see a key (column) of its row, [T, S]. The last query stands at the last key."""
    visible = torch.ones(queries, keys, dtype=torch.bool, device=device)
    last = keys - queries
    if spec.causal:
        visible = visible.tril(last)
        return visible if spec.window is None else visible.triu(last - spec.window + 1)
    return visible if spec.window is None else visible.tril(last + spec.window).triu(last - spec.window)
