"""FlashAttention 4, 3 and 2, by keyword: the order of their arguments differs."""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from model.kernels.backend import Connection
from model.kernels.sdpa import attend_sdpa
from model.kernels.varlen import segments
from model.layout import Layout
from model.spec import AttentionSpec

ARGUMENTS = {"window": "window_size", "softcap": "softcap", "scale": "softmax_scale", "dropout": "dropout_p"}
"""Features by the argument that they need; releases differ."""


def connect_flash(package: str) -> Connection:
    """FlashAttention 4 (`flash_attn.cute`), 3 (`flash_attn_interface`) or 2 (`flash_attn`).

    3 and 4 may return (output, log-sum-exp).
    """
    module = importlib.import_module(package)
    dense, varlen = module.flash_attn_func, module.flash_attn_varlen_func
    parameters = inspect.signature(dense).parameters
    if package == "flash_attn.cute":  # its kernels are compiled by its own DSL, which torch.compile cannot trace
        dense, varlen = torch.compiler.disable(dense), torch.compiler.disable(varlen)

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
        assert bias_HTS is None
        if layout is not None and layout.mask_B1TS is not None:  # newest tokens of rows of several lengths
            return attend_sdpa(q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=layout, dropout=0.0)
        left, right = spec.reach(k_BSKE.shape[1])
        asked: dict[str, Any] = {
            "window_size": None if left is None else (left, right),
            "softcap": spec.softcap,
            "softmax_scale": spec.scale,
            "dropout_p": dropout or None,
        }
        options = {name: value for name, value in asked.items() if value is not None}
        if layout is None and keys is None:
            out = dense(q_BTHE, k_BSKE, v_BSKE, causal=spec.causal, **options)
            return out[0] if isinstance(out, tuple) else out
        q, k, v = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
        q_bounds, k_bounds, longest_q, longest_k = segments(q_BTHE, k_BSKE, layout, keys)
        out = varlen(
            q, k, v, causal=spec.causal, cu_seqlens_q=q_bounds, cu_seqlens_k=k_bounds,
            max_seqlen_q=longest_q, max_seqlen_k=longest_k, **options,
        )  # fmt: skip
        return (out[0] if isinstance(out, tuple) else out).view_as(q_BTHE)

    features = {feature for feature, argument in ARGUMENTS.items() if argument in parameters}
    return Connection(attend, frozenset({"bidirectional", "cross"} | features))
