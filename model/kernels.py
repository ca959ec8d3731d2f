"""Attention kernels behind one signature, what each of them needs, and the choice between them.

Letters: B rows, T queries, S keys, H query heads, K key-value heads, E head size, N = B x T tokens.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from config import Choice, ConfigError, TransformerConfig
from model.layout import Layout, visible_keys
from model.spec import AttentionSpec

Attend = Callable[..., Tensor]
"""attend(q_BTHE, k_BSKE, v_BSKE, *, spec, layout, dropout, bias_HTS=None, keys=None) -> [B, T, H, E], in v's dtype.

Self-attention: S = T, or one query (T = 1) after S - 1 cached keys and no layout. `bias_HTS` is added to the scaled scores.
Attention to other tokens: no layout, a spec that is not causal, and `keys`, the layout of their padded rows, if they are.
"""

SHORT_ROW = 512
"""Tokens of a row up to which two matrix products beat SDPA in bf16 on a CPU."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that works here."""

    name: str
    attend: Attend
    dense_mask: bool = False
    """Reads `layout.mask_B1TT` instead of cu_seqlens."""

    def __str__(self) -> str:
        return self.name


def dense_mask(layout: Layout | None, keys: Layout | None) -> Tensor | None:
    """True where a query may see a key, broadcastable to [B, H, T, S]; None where the spec alone decides."""
    rows = layout if keys is None else keys
    return None if rows is None else rows.mask_B1TT


def attend_reference(
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
    """The spec's formula in float32, written out: the truth for the other kernels."""
    q, k, v = (x.transpose(1, 2).float() for x in (q_BTHE, k_BSKE, v_BSKE))
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores_BHTS = q @ k.transpose(-2, -1) * (spec.scale or q.shape[-1] ** -0.5)
    if bias_HTS is not None:
        scores_BHTS = scores_BHTS + bias_HTS
    if spec.softcap is not None:
        scores_BHTS = spec.softcap * torch.tanh(scores_BHTS / spec.softcap)
    visible = dense_mask(layout, keys)
    if visible is None:
        visible = visible_keys(spec, q.shape[2], k.shape[2], q.device)
    weights_BHTS = scores_BHTS.masked_fill(~visible, -torch.inf).softmax(-1)
    out_BHTE = F.dropout(weights_BHTS, dropout) @ v
    return out_BHTE.transpose(1, 2).to(v_BSKE.dtype)


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
    """PyTorch's scaled_dot_product_attention: its causal flash path for whole rows, a dense mask for documents.

    Short rows in bf16 on a CPU, where its backward pass is slow, are computed by `attend_short` instead.
    """
    T, S = q_BTHE.shape[1], k_BSKE.shape[1]
    on_cpu_in_bf16 = v_BSKE.dtype == torch.bfloat16 and q_BTHE.device.type == "cpu"
    if on_cpu_in_bf16 and 1 < T <= SHORT_ROW and T == S and bias_HTS is None and keys is None:
        return attend_short(q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=layout, dropout=dropout)
    mask = dense_mask(layout, keys)
    if mask is None and spec.window is not None and spec.window < S:
        mask = visible_keys(spec, T, S, q_BTHE.device)
    causal = spec.causal and mask is None and T > 1
    if bias_HTS is not None:
        if mask is None:
            mask = visible_keys(spec, T, S, q_BTHE.device)
        mask = bias_HTS.to(q_BTHE.dtype).masked_fill(~mask, -torch.inf)
        causal = False
    out_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=spec.scale,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return out_BHTE.transpose(1, 2)


def attend_short(
    q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, *, spec: AttentionSpec, layout: Layout | None, dropout: float
) -> Tensor:
    """softmax(q k^T / sqrt(E)) v as two batched matrix products, which keep the T x T weights of each head.

    Up to SHORT_ROW tokens in bf16 on a CPU, where the backward pass of scaled_dot_product_attention takes 2 to 6 times
    as long. The query heads that share a key head are rows of one product.
    """
    (B, T, H, E), K = q_BTHE.shape, k_BTKE.shape[2]
    G = H // K
    q = q_BTHE.view(B, T, K, G, E).permute(0, 2, 3, 1, 4).reshape(B * K, G * T, E)
    k, v = (x.transpose(1, 2).reshape(B * K, T, E) for x in (k_BTKE, v_BTKE))
    visible = visible_keys(spec, T, T, q.device)[None, None] if layout is None else layout.mask_B1TT
    assert visible is not None
    bias = torch.zeros_like(visible, dtype=q.dtype).masked_fill_(~visible, -torch.inf).repeat(1, 1, G, 1)
    if layout is not None:
        bias = bias.expand(B, K, G * T, T)
    weights = torch.baddbmm(bias.flatten(0, 1), q, k.transpose(1, 2), alpha=spec.scale or E**-0.5).softmax(-1)
    out = F.dropout(weights, dropout) @ v
    return out.view(B, K, G, T, E).permute(0, 3, 1, 2, 4).reshape(B, T, H, E)


def connect_varlen() -> Attend:
    """PyTorch's varlen_attn over the documents of the batch; whole rows go to attend_sdpa.

    Its arguments changed: torch 2.10 has `is_causal`, later versions a window, 2.12 added `enable_gqa`.
    """
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    parameters = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    takes_groups = "enable_gqa" in parameters
    if takes_groups:
        options["enable_gqa"] = True

    def attend(
        q_BTHE: Tensor,
        k_BSKE: Tensor,
        v_BSKE: Tensor,
        *,
        spec: AttentionSpec,
        layout: Layout | None,
        dropout: float,
        bias_HTS: Tensor | None = None,
    ) -> Tensor:
        if layout is None:
            return attend_sdpa(q_BTHE, k_BSKE, v_BSKE, spec=spec, layout=None, dropout=dropout)
        if not takes_groups:
            groups = q_BTHE.shape[2] // k_BSKE.shape[2]
            k_BSKE, v_BSKE = k_BSKE.repeat_interleave(groups, dim=2), v_BSKE.repeat_interleave(groups, dim=2)
        q, k, v = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
        bounds, longest = layout.cu_seqlens, layout.max_seqlen
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, **options).view_as(q_BTHE)

    return attend


def connect_flash(package: str) -> Attend:
    """FlashAttention 4 (`flash_attn.cute`), 3 (`flash_attn_interface`) or 2 (`flash_attn`).

    Keywords throughout, because the order of arguments differs; 3 and 4 may return (output, log-sum-exp).
    """
    module = importlib.import_module(package)
    dense, varlen = module.flash_attn_func, module.flash_attn_varlen_func
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
    ) -> Tensor:
        options = {"causal": True, "dropout_p": dropout} if dropout else {"causal": True}
        if layout is None:
            out = dense(q_BTHE, k_BSKE, v_BSKE, **options)
            return out[0] if isinstance(out, tuple) else out
        q, k, v = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
        out = varlen(
            q, k, v,
            cu_seqlens_q=layout.cu_seqlens, cu_seqlens_k=layout.cu_seqlens,
            max_seqlen_q=layout.max_seqlen, max_seqlen_k=layout.max_seqlen,
            **options,
        )  # fmt: skip
        return (out[0] if isinstance(out, tuple) else out).view_as(q_BTHE)

    return attend


@dataclass(frozen=True)
class Backend:
    """What a kernel supports. The defaults are those of the GPU kernels."""

    name: str
    """What a recipe calls it."""
    source: str
    """Where it comes from, for people."""
    connect: Callable[[], Attend]
    """Imports it; fails if the package is missing or broken."""
    gpus: tuple[int, ...] = (8, 9, 10, 11, 12)
    """Major compute capabilities; empty: any device."""
    dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16)
    largest_head: int | None = 256
    """Largest head size, which is then a multiple of 8."""
    dropout: bool = False
    """Drops attention weights."""
    bias: bool = False
    """Adds a bias to the scores, and attends from one sequence to another."""
    dense_mask: bool = False


FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BACKENDS = (
    Backend("flash", "flash-attn 4", partial(connect_flash, "flash_attn.cute"), gpus=(9, 10)),
    Backend("flash", "flash-attn 3", partial(connect_flash, "flash_attn_interface"), gpus=(9,)),
    Backend("flash", "flash-attn 2", partial(connect_flash, "flash_attn"), dropout=True),
    Backend("varlen", "torch.nn.attention.varlen", connect_varlen),
    Backend("sdpa", "PyTorch", lambda: attend_sdpa, (), FLOATS, None, dropout=True, bias=True, dense_mask=True),
    Backend(
        "reference", "PyTorch", lambda: attend_reference, (), FLOATS, None, dropout=True, bias=True, dense_mask=True
    ),
)
"""In order of preference."""


def find_obstacle(backend: Backend, config: TransformerConfig, device: torch.device, dtype: torch.dtype) -> str:
    """Why a backend cannot serve this model on this device, or an empty string."""
    if backend.gpus and device.type != "cuda":
        return f"needs a CUDA GPU, not {device.type}"
    if backend.gpus and torch.cuda.get_device_capability(device)[0] not in backend.gpus:
        return "has no kernel for compute capability {}.{}".format(*torch.cuda.get_device_capability(device))
    if dtype not in backend.dtypes:
        return f"computes in bf16 or fp16, not {dtype}".replace("torch.", "")
    if backend.largest_head and (config.head_width % 8 or config.head_width > backend.largest_head):
        return f"needs a head size that is a multiple of 8 up to {backend.largest_head}, not {config.head_width}"
    if config.dropout and not backend.dropout:
        return f"has no dropout (model.dropout is {config.dropout:g})"
    if config.position == "relative" and not backend.bias:
        return "adds no bias to scores (model.position is relative)"
    try:
        backend.connect()
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return f"is not usable: {error}"
    return ""


def choose_kernel(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, document_masking: bool, wanted: str = "auto"
) -> Choice[Kernel]:
    """The first backend that can compute attention of `config` on `device` in `dtype`, and why.

    Left to itself it takes varlen only for documents, because whole rows gain nothing from it, and never the reference.
    Raises ConfigError when the kernel asked for by name cannot work.
    """
    skipped = {"reference"} if document_masking else {"reference", "varlen"}
    passed_over: dict[str, list[str]] = {}
    for backend in BACKENDS:
        if wanted != backend.name and (wanted != "auto" or backend.name in skipped):
            continue
        obstacle = find_obstacle(backend, config, device, dtype)
        if not obstacle:
            kernel = Kernel(backend.name, backend.connect(), backend.dense_mask)
            return Choice(kernel, "; ".join([f"from {backend.source}", *_explain(passed_over)]))
        passed_over.setdefault(obstacle, []).append(backend.source)
    why = "; ".join(_explain(passed_over))
    raise ConfigError(f"engine.kernel: {wanted} cannot be used here: {why}. Set engine.kernel=auto or sdpa.")


def _explain(passed_over: dict[str, list[str]]) -> list[str]:
    return [f"{', '.join(sources)}: {obstacle}" for obstacle, sources in passed_over.items()]
