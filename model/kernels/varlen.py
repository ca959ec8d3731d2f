"""PyTorch's varlen_attn: attention inside each document of the flattened batch.

Letters: B rows, T queries, S keys, H query heads, K key-value heads, E head size, N = B x T tokens.
"""

import importlib
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.backend import Connection
from model.kernels.sdpa import attend_sdpa
from model.layout import Layout, document_numbers
from model.spec import AttentionSpec


def connect_varlen() -> Connection:
    """torch.nn.attention.varlen; whole rows without a window go to attend_sdpa.

    Its arguments changed: torch 2.10 has `is_causal`, later versions a window and a scale, 2.12 added `enable_gqa`.
    """
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    parameters = inspect.signature(varlen_attn).parameters
    windowed = "window_size" in parameters
    takes_groups = "enable_gqa" in parameters

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
        assert bias_HTS is None and spec.softcap is None and not dropout
        left, right = spec.reach(k_BSKE.shape[1])
        if layout is not None and layout.mask_B1TS is not None:  # newest tokens of rows of several lengths
            return attend_sdpa(q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=layout, dropout=0.0)
        if layout is None and keys is None and (left is None or q_BTHE.shape[1] != k_BSKE.shape[1]):
            return attend_sdpa(q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=None, dropout=0.0)
        options: dict[str, Any] = {"enable_gqa": True} if takes_groups else {}
        if windowed:
            options |= {"window_size": (_unlimited(left), _unlimited(right)), "scale": spec.scale}
        else:
            assert left is None and spec.scale is None
            options["is_causal"] = spec.causal
        if not takes_groups:
            groups = q_BTHE.shape[2] // k_BSKE.shape[2]
            k_BSKE, v_BSKE = k_BSKE.repeat_interleave(groups, dim=2), v_BSKE.repeat_interleave(groups, dim=2)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
        return varlen_attn(q, k, v, *segments(q_BTHE, k_BSKE, layout, keys), **options).view_as(q_BTHE)

    features = {"bidirectional", "cross"} | ({"window", "scale"} if windowed else set())
    return Connection(attend, frozenset(features))


def _unlimited(tokens: int | None) -> int:
    return -1 if tokens is None else tokens


def segments(
    q_BTHE: Tensor, k_BSKE: Tensor, layout: Layout | None, keys: Layout | None
) -> tuple[Tensor, Tensor, int, int]:
    """What a varlen kernel wants to know: boundaries of queries and of keys, int32, and the longest of each.

    Whole rows are one segment each. In cross-attention the nth document of a row of queries meets the nth of its keys;
    either may be empty.
    """
    (rows, queries), length = q_BTHE.shape[:2], k_BSKE.shape[1]
    if keys is None and layout is not None:
        return layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen
    if keys is None:
        q_bounds, k_bounds = (
            torch.arange(0, rows * n + 1, n, dtype=torch.int32, device=q_BTHE.device) for n in (queries, length)
        )
        return q_bounds, k_bounds, queries, length
    q_BT, k_BS = document_numbers(layout, keys, queries)
    documents = int(k_BS.max()) + 1
    q_bounds, k_bounds = (
        F.pad(F.one_hot(ids.long(), documents).sum(1).flatten().cumsum(0), (1, 0)).int() for ids in (q_BT, k_BS)
    )
    return q_bounds, k_bounds, queries, length
