"""PyTorch's flex attention: skips blocks of scores that a window or documents hide, and changes scores in its kernel."""

import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from model.kernels.backend import Connection
from model.kernels.sdpa import attend_sdpa
from model.layout import Layout, document_numbers
from model.spec import AttentionSpec


def connect_flex() -> Connection:
    """torch.nn.attention.flex_attention (Dong et al., arXiv:2412.05496), compiled on a GPU; a CPU has no backward pass."""
    eager = importlib.import_module("torch.nn.attention.flex_attention").flex_attention
    compiled = torch.compile(eager)

    def attend(
        q_BTHE: Tensor,
        k_BSKE: Tensor,
        v_BSKE: Tensor,
        *,
        spec: AttentionSpec,
        layout: Layout | None,
        dropout: float,
        bias_HTS: Tensor | None = None,
        keys: Layout | None = None,
    ) -> Tensor:
        assert not dropout
        queries, length = q_BTHE.shape[1], k_BSKE.shape[1]
        if queries == 1:  # nothing to skip for the newest token
            return attend_sdpa(
                q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=layout, dropout=0.0, bias_HTS=bias_HTS, keys=keys
            )
        holder = keys or layout
        mask = holder.block_mask if holder is not None else None
        if mask is None:
            mask = block_mask(spec, layout, keys, queries, length, q_BTHE.device)
        flex_attention = compiled if q_BTHE.device.type == "cuda" else eager
        out_BHTE = flex_attention(
            q_BTHE.transpose(1, 2),
            k_BSKE.transpose(1, 2),
            v_BSKE.transpose(1, 2),
            score_mod=_score_change(spec, bias_HTS),
            block_mask=mask,
            scale=spec.scale,
            enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
        )
        return out_BHTE.transpose(1, 2)

    return Connection(attend, frozenset({"bidirectional", "cross", "window", "softcap", "scale", "bias"}))


def _score_change(spec: AttentionSpec, bias_HTS: Tensor | None) -> Any:
    softcap = spec.softcap
    if bias_HTS is None and softcap is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if bias_HTS is not None:
            score = score + bias_HTS[h, q, k]
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    return change


def block_mask(
    spec: AttentionSpec, layout: Layout | None, keys: Layout | None, queries: int, length: int, device: torch.device
) -> Any:
    """Flex attention's BlockMask of what each query sees, of `length` keys; None if it is everything."""
    create_block_mask = importlib.import_module("torch.nn.attention.flex_attention").create_block_mask
    before, after = spec.reach(length)
    numbers = None if layout is None and keys is None else document_numbers(layout, keys, queries)
    if before is None and after is None and numbers is None:
        return None
    last = length - queries

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = k >= 0
        if after is not None:
            seen = seen & (k <= q + last + after)
        if before is not None:
            seen = seen & (k >= q + last - before)
        if numbers is not None:
            seen = seen & (numbers[0][b, q] == numbers[1][b, k])
        return seen

    rows = None if numbers is None else len(numbers[1])
    return create_block_mask(visible, rows, None, queries, length, device=device)


def with_block_mask(spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None) -> Layout | None:
    (rows, queries), device = x_BTD.shape[:2], x_BTD.device
    if queries == 1:
        return layout if keys is None else keys
    holder = keys or layout or Layout.whole_rows(rows, queries, device)
    length = holder.document_ids_BT.shape[1]
    return replace(holder, block_mask=block_mask(spec, layout, keys, queries, length, device))
