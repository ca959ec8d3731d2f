"""Stand-ins for GPU packages, with the real ones' argument names and defaults (flash-attn 4.0.0b36, 3.0.0b1, 2.8.3;
torch 2.10 to 2.13). They compute with the reference."""

import inspect
from types import SimpleNamespace

import torch

from model.kernels.reference import attend_reference
from model.spec import AttentionSpec


def attention(q, k, v, causal, window_size, scale, softcap):
    """What the packages compute from their arguments; an unlimited side of a window is None or -1."""
    left, right = (None if side in (None, -1) else side for side in window_size)
    causal = causal or right == 0
    assert causal or left == right
    window = None if left is None else left + causal
    spec = AttentionSpec(causal=causal, window=window, softcap=softcap or None, scale=scale)
    return attend_reference(q, k, v, spec=spec, layout=None, dropout=0.0)


def packed(q, k, v, q_bounds, k_bounds, longest_q, longest_k, **options):
    """`attention` inside each segment; a segment of queries without keys is zero."""
    assert q_bounds.dtype == k_bounds.dtype == torch.int32
    assert longest_q >= q_bounds.diff().max() and longest_k >= k_bounds.diff().max()
    pieces = []
    for queries, keys in zip(q.split(q_bounds.diff().tolist()), zip_split(k, v, k_bounds), strict=True):
        empty = not (len(queries) and len(keys[0]))
        pieces.append(
            torch.zeros_like(queries) if empty else attention(queries[None], *(x[None] for x in keys), **options)[0]
        )
    return torch.cat(pieces)


def zip_split(k, v, bounds):
    return list(zip(*(x.split(bounds.diff().tolist()) for x in (k, v)), strict=True))


def flash_4() -> SimpleNamespace:
    def flash_attn_func(
        q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None),
        learnable_sink=None, softcap=0.0,
    ):  # fmt: skip
        assert qv is None
        return attention(q, k, v, causal, window_size, softmax_scale, softcap), None

    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, min_seqlen_k=None,
        seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, softmax_scale=None, causal=False,
        window_size=(None, None), learnable_sink=None, softcap=0.0,
    ):  # fmt: skip
        assert qv is None
        bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        options = dict(causal=causal, window_size=window_size, scale=softmax_scale, softcap=softcap)
        return packed(q, k, v, *bounds, **options), None

    return SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


def flash_3() -> SimpleNamespace:
    def flash_attn_func(
        q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0,
    ):  # fmt: skip
        assert qv is None
        return attention(q, k, v, causal, window_size, softmax_scale, softcap)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0,
    ):  # fmt: skip
        assert qv is None and seqused_q is None
        bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return packed(q, k, v, *bounds, causal=causal, window_size=window_size, scale=softmax_scale, softcap=softcap)

    return SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


def flash_2() -> SimpleNamespace:
    def flash_attn_func(
        q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None
    ):
        assert dropout_p == 0
        return attention(q, k, v, causal, window_size, softmax_scale, softcap)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
    ):  # fmt: skip
        assert dropout_p == 0
        bounds = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        return packed(q, k, v, *bounds, causal=causal, window_size=window_size, scale=softmax_scale, softcap=softcap)

    return SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


FLASH = {"flash_attn.cute": flash_4, "flash_attn_interface": flash_3, "flash_attn": flash_2}


def varlen_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert query.shape[1] == key.shape[1]
    options = dict(causal=is_causal, window_size=(-1, -1), scale=None, softcap=None)
    return packed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)


def varlen_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert query.shape[1] == key.shape[1]
    options = dict(causal=False, window_size=window_size, scale=scale, softcap=None)
    return packed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)


def varlen_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert enable_gqa or query.shape[1] == key.shape[1]
    options = dict(causal=False, window_size=window_size, scale=scale, softcap=None)
    return packed(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, **options)


VARLEN = (varlen_2_10, varlen_2_11, varlen_2_12)


def without(function, argument):
    """The same function in an older release, without one argument."""
    signature = inspect.signature(function)
    kept = [parameter for name, parameter in signature.parameters.items() if name != argument]

    def older(*args, **options):
        assert argument not in options
        return function(*args, **options)

    older.__signature__ = signature.replace(parameters=kept)
    return older
