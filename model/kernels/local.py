"""Sliding windows cut into blocks: a block of queries meets its own keys and those of its neighbours, and no others.

Letters: B rows, T row length, W window and block size, n = T / W blocks of a row, C = 2 W or 3 W keys that a block meets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layout import Layout
from model.spec import AttentionSpec

BLOCKS = 8
"""Blocks in a row from which this beats a dense mask, on a CPU with W = 64."""


def runs_in_blocks(spec: AttentionSpec, queries: int, keys: int) -> bool:
    """Whether self-attention over whole rows is computed in blocks."""
    return spec.window is not None and queries == keys >= BLOCKS * spec.window and queries % spec.window == 0


def with_neighbours(x: Tensor, spec: AttentionSpec) -> Tensor:
    """[B, T, ...] as [B x n, C, ...]: each block between the one before it and, unless causal, the one after it."""
    assert spec.window is not None
    after = 0 if spec.causal else spec.window
    blocks = F.pad(x, (*(0, 0) * (x.dim() - 2), spec.window, after)).unflatten(1, (-1, spec.window))
    count = x.shape[1] // spec.window
    return torch.cat([blocks[:, i : i + count] for i in range(blocks.shape[1] - count + 1)], dim=2).flatten(0, 1)


def block_visible(spec: AttentionSpec, layout: Layout | None, rows: int, length: int, device: torch.device) -> Tensor:
    """True where a query of a block may see a key, [B x n, 1, W, C]."""
    assert spec.window is not None
    if layout is None:
        ids_BT = torch.zeros(rows, length, dtype=torch.int32, device=device)
    else:
        ids_BT = layout.document_ids_BT - layout.document_ids_BT.min()
    q_ids = ids_BT.unflatten(1, (-1, spec.window)).flatten(0, 1)
    k_ids = with_neighbours(ids_BT + 1, spec) - 1  # -1 outside the row, where with_neighbours pads with 0
    before, after = spec.reach(length)
    assert before is not None and after is not None
    near = torch.ones(spec.window, k_ids.shape[1], dtype=torch.bool, device=device)
    near = near.triu(spec.window - before).tril(spec.window + after)
    return ((q_ids[:, :, None] == k_ids[:, None, :]) & near).unsqueeze(1)
