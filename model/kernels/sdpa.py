"""PyTorch's scaled_dot_product_attention, and two matrix products where it is slow or cannot do what is asked.

Letters: B rows, T queries, S keys, H query heads, K key-value heads, G = H / K, E head size.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.local import block_visible, runs_in_blocks, with_neighbours
from model.kernels.reference import with_dense_mask
from model.layout import Layout, dense_mask
from model.spec import AttentionSpec

SHORT_ROW = 512
"""Tokens of a row up to which two matrix products beat SDPA in bf16 on a CPU, outside of inference mode."""


def attend_sdpa(
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
    """Packed documents one by one, windows in blocks, whole rows with SDPA's causal flag or no mask, the rest with a dense
    mask."""
    if layout is not None and layout.lengths:
        assert keys is None and bias_HTS is None
        documents = zip(*(x.split(layout.lengths, dim=1) for x in (q_BTHE, k_BSKE, v_BSKE)), strict=True)
        return torch.cat([attend_sdpa(*qkv, spec=spec, layout=None, dropout=dropout) for qkv in documents], dim=1)
    (rows, queries), length, device = q_BTHE.shape[:2], k_BSKE.shape[1], q_BTHE.device
    if bias_HTS is None and keys is None and runs_in_blocks(spec, queries, length):
        prepared = layout.mask_B1TS if layout is not None else None
        visible = block_visible(spec, layout, rows, length, device) if prepared is None else prepared
        q = q_BTHE.unflatten(1, (-1, visible.shape[2])).flatten(0, 1)
        k, v = with_neighbours(k_BSKE, spec), with_neighbours(v_BSKE, spec)
        return _weigh(q, k, v, visible, spec, dropout, None).reshape(q_BTHE.shape)
    masked = layout is not None or keys is not None or bias_HTS is not None or spec.reach(length)[0] is not None
    if masked or _prefers_products(q_BTHE, k_BSKE, spec) or (spec.causal and queries not in (1, length)):
        visible = dense_mask(spec, layout, keys, queries, length, device)
        return _weigh(q_BTHE, k_BSKE, v_BSKE, visible, spec, dropout, bias_HTS)
    return _sdpa(q_BTHE, k_BSKE, v_BSKE, is_causal=spec.causal and queries > 1, dropout_p=dropout, scale=spec.scale)


def with_mask(spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None) -> Layout | None:
    """The layout with the mask that attend_sdpa wants; nothing for whole rows, whose masks are cheap."""
    rows, queries = x_BTD.shape[:2]
    if layout is not None and layout.lengths:
        return layout
    if layout is not None and keys is None and runs_in_blocks(spec, queries, queries):
        return replace(layout, mask_B1TS=block_visible(spec, layout, rows, queries, x_BTD.device))
    return with_dense_mask(spec, x_BTD, layout, keys)


def _prefers_products(q_BTHE: Tensor, k_BSKE: Tensor, spec: AttentionSpec) -> bool:
    """SDPA has no softcap, and its backward pass is slow for short rows in bf16 on a CPU. Only inference mode says that there
    will be none: a pass without gradients may be repeated with them, and then has to draw the same dropout."""
    queries, length = q_BTHE.shape[1], k_BSKE.shape[1]
    slow = k_BSKE.device.type == "cpu" and k_BSKE.dtype == torch.bfloat16 and queries > 1
    slow = slow and not torch.is_inference_mode_enabled()
    return spec.softcap is not None or (slow and max(queries, length) <= SHORT_ROW)


def _weigh(
    q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, visible: Tensor, spec: AttentionSpec, dropout: float,
    bias_HTS: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention of each query to its visible keys."""
    if _prefers_products(q_BTHE, k_BSKE, spec):
        return _two_products(q_BTHE, k_BSKE, v_BSKE, visible, spec, dropout, bias_HTS)
    mask = visible if bias_HTS is None else bias_HTS.to(q_BTHE.dtype).masked_fill(~visible, -torch.inf)
    if q_BTHE.device.type != "cpu":  # the kernel for masks that every GPU has takes no groups
        groups = q_BTHE.shape[2] // k_BSKE.shape[2]
        k_BSKE, v_BSKE = k_BSKE.repeat_interleave(groups, dim=2), v_BSKE.repeat_interleave(groups, dim=2)
    return _sdpa(q_BTHE, k_BSKE, v_BSKE, attn_mask=mask, dropout_p=dropout, scale=spec.scale)


def _sdpa(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, **options: Any) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BTHE, k_BSKE, v_BSKE))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **options).transpose(1, 2)


def _two_products(
    q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, visible: Tensor, spec: AttentionSpec, dropout: float,
    bias_HTS: Tensor | None,
) -> Tensor:  # fmt: skip
    """The formula as two batched matrix products, which keep the T x S weights of each head.

    Up to SHORT_ROW tokens in bf16 on a CPU, where the backward pass of scaled_dot_product_attention takes 2 to 6 times
    as long. The query heads that share a key head are rows of one product.
    """
    (B, T, H, E), (S, K) = q_BTHE.shape, k_BSKE.shape[1:3]
    G = H // K
    q = q_BTHE.view(B, T, K, G, E).permute(0, 2, 3, 1, 4).reshape(B * K, G * T, E)
    k, v = (x.transpose(1, 2).reshape(B * K, S, E) for x in (k_BSKE, v_BSKE))
    hidden = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -torch.inf).repeat(1, 1, G, 1)
    bias = torch.zeros_like(hidden[:1]) if bias_HTS is None else bias_HTS.to(q.dtype).view(1, K, G * T, S)

    def rows(x: Tensor) -> Tensor:
        """[B x K, G x T, S], or [1, G x T, S] if all are equal."""
        return (x if x.shape[:2] == (1, 1) else x.expand(B, K, G * T, S)).flatten(0, 1)

    scale = spec.scale or E**-0.5
    if spec.softcap is None:
        scores = torch.baddbmm(rows(hidden if bias_HTS is None else hidden + bias), q, k.transpose(1, 2), alpha=scale)
    else:
        scores = torch.baddbmm(rows(bias), q, k.transpose(1, 2), alpha=scale)
        scores = spec.softcap * torch.tanh(scores / spec.softcap) + rows(hidden)
    out = F.dropout(scores.softmax(-1), dropout) @ v
    return out.view(B, K, G, T, E).permute(0, 3, 1, 2, 4).reshape(B, T, H, E)
