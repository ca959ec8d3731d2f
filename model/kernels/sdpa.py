"""PyTorch's scaled_dot_product_attention, and two matrix products where it is slow or cannot do what is asked.

Letters: B rows, T queries, S keys, H query heads, K key-value heads, G = H / K, E head size.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layout import Layout, dense_mask
from model.spec import AttentionSpec

SHORT_ROW = 512
"""Tokens of a row up to which two matrix products beat SDPA in bf16 on a CPU."""


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
    """SDPA: its causal flag or no mask for whole rows, a dense mask for the rest.

    Softcaps, which it lacks, and short rows in bf16 on a CPU, where its backward pass is slow, go to `attend_products`.
    """
    queries, length, on_gpu = q_BTHE.shape[1], k_BSKE.shape[1], q_BTHE.device.type != "cpu"
    short = not on_gpu and v_BSKE.dtype == torch.bfloat16 and 1 < queries <= SHORT_ROW and length <= SHORT_ROW
    if short or spec.softcap is not None:
        return attend_products(
            q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=layout, dropout=dropout, bias_HTS=bias_HTS, keys=keys
        )
    mask = None
    partial = spec.reach(length)[0] is not None or (spec.causal and queries not in (1, length))
    if partial or layout is not None or keys is not None or bias_HTS is not None:
        mask = dense_mask(spec, layout, keys, queries, length, q_BTHE.device)
    if bias_HTS is not None:
        mask = bias_HTS.to(q_BTHE.dtype).masked_fill(~mask, -torch.inf)
    if mask is not None and on_gpu:  # the kernel for masks that every GPU has takes no groups
        groups = q_BTHE.shape[2] // k_BSKE.shape[2]
        k_BSKE, v_BSKE = k_BSKE.repeat_interleave(groups, dim=2), v_BSKE.repeat_interleave(groups, dim=2)
    out_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=spec.causal and mask is None and queries > 1,
        scale=spec.scale,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return out_BHTE.transpose(1, 2)


def attend_products(
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
    """The formula as two batched matrix products, which keep the T x S weights of each head.

    Up to SHORT_ROW tokens in bf16 on a CPU, where the backward pass of scaled_dot_product_attention takes 2 to 6 times
    as long. The query heads that share a key head are rows of one product.
    """
    (B, T, H, E), (S, K) = q_BTHE.shape, k_BSKE.shape[1:3]
    G = H // K
    q = q_BTHE.view(B, T, K, G, E).permute(0, 2, 3, 1, 4).reshape(B * K, G * T, E)
    k, v = (x.transpose(1, 2).reshape(B * K, S, E) for x in (k_BSKE, v_BSKE))
    visible = dense_mask(spec, layout, keys, T, S, q.device)
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


def with_dense_mask(spec: AttentionSpec, x_BTD: Tensor, layout: Layout | None, keys: Layout | None) -> Layout | None:
    """Nothing for whole rows, whose masks are cheap."""
    holder = keys or layout
    if holder is None:
        return None
    length = holder.document_ids_BT.shape[1]
    return replace(holder, mask_B1TS=dense_mask(spec, layout, keys, x_BTD.shape[1], length, x_BTD.device))
