"""Every attention kernel against the reference, and the choice between them.

The GPU kernels run only where they can. Their adapters are also tested on the CPU with stand-ins that have the real
packages' argument names.
"""

import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from config import ConfigError
from model.kernels import (
    BACKENDS,
    Backend,
    attend_reference,
    attend_sdpa,
    attend_short,
    choose_kernel,
    connect_flash,
    connect_varlen,
    find_obstacle,
)
from model.layout import Layout
from model.spec import AttentionSpec
from tests.model.tiny import assert_close, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROWS, LENGTH, HEADS, SIZE = 2, 48, 4, 16
CAUSAL = AttentionSpec()
BOUNDARIES = [0, 5, 48, 49, 80, 96]


def random_qkv(kv_heads=HEADS, length=LENGTH, queries=LENGTH, device=CPU, dtype=torch.float32, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, queries, HEADS, size), (ROWS, length, kv_heads, size), (ROWS, length, kv_heads, size)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def make_layout(documents: bool, device=CPU) -> Layout | None:
    return Layout.from_cu_seqlens(BOUNDARIES, ROWS, LENGTH, device).with_mask(CAUSAL) if documents else None


def output_and_gradients(attend, qkv, layout) -> list[torch.Tensor]:
    out = attend(*qkv, spec=CAUSAL, layout=layout, dropout=0.0)
    weights = torch.linspace(-1, 1, out.numel(), device=out.device).view_as(out)
    return [out, *torch.autograd.grad((out.float() * weights).sum(), qkv)]


def assert_equals_reference(attend, qkv, layout, tolerance=1e-5) -> None:
    exact = [x.detach().float().requires_grad_() for x in qkv]
    expected = output_and_gradients(attend_reference, exact, layout)
    actual = output_and_gradients(attend, qkv, layout)
    for what, ours, truth in zip(["output", "dq", "dk", "dv"], actual, expected, strict=True):
        assert_close(ours, truth, what, tolerance)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_sdpa_equals_reference(kv_heads, documents):
    assert_equals_reference(attend_sdpa, random_qkv(kv_heads), make_layout(documents))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_products_for_short_rows_equal_reference(kv_heads, documents):
    assert_equals_reference(attend_short, random_qkv(kv_heads), make_layout(documents))
    in_bf16 = random_qkv(kv_heads, dtype=torch.bfloat16)
    assert_equals_reference(attend_sdpa, in_bf16, make_layout(documents), tolerance=2e-2)
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):  # nothing here can run it: short rows in bf16 never ask for it
        attend_sdpa(*in_bf16, spec=CAUSAL, layout=make_layout(documents), dropout=0.0)


@pytest.mark.parametrize("attend", [attend_sdpa, attend_reference])
def test_one_query_sees_all_cached_keys(attend):
    q, k, v = random_qkv(kv_heads=2)
    whole = attend(q, k, v, spec=CAUSAL, layout=None, dropout=0.0)
    last = attend(q[:, -1:], k, v, spec=CAUSAL, layout=None, dropout=0.0)
    assert_close(last, whole[:, -1:], "last row")


@pytest.mark.parametrize("attend", [attend_sdpa, attend_reference])
def test_grouped_heads_equal_repeated_heads(attend):
    q, k, v = random_qkv(kv_heads=2)
    repeated = [x.repeat_interleave(2, dim=2) for x in (k, v)]
    assert_close(
        attend(q, k, v, spec=CAUSAL, layout=None, dropout=0.0),
        attend(q, *repeated, spec=CAUSAL, layout=None, dropout=0.0),
        "output",
    )


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_sdpa_takes_the_flash_path_on_the_cpu(kv_heads, documents):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend_sdpa(*random_qkv(kv_heads), spec=CAUSAL, layout=make_layout(documents), dropout=0.0)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: f"{backend.name}-{backend.source}")
def test_gpu_kernels_equal_reference(backend: Backend, size, kv_heads, documents):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if obstacle := find_obstacle(backend, tiny_config(head_size=size), GPU, torch.bfloat16):
        pytest.skip(f"{backend.source}: {obstacle}")
    qkv = random_qkv(kv_heads, device=GPU, dtype=torch.bfloat16, size=size)
    assert_equals_reference(backend.connect(), qkv, make_layout(documents, GPU), tolerance=2e-2)


def per_document(q, k, v, bounds) -> torch.Tensor:
    """What a varlen kernel computes: causal attention of each [start, end) of the packed tokens."""
    pieces = [
        attend_reference(q[None, a:b], k[None, a:b], v[None, a:b], spec=CAUSAL, layout=None, dropout=0.0)[0]
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return torch.cat(pieces)


def flash_4_stand_in() -> types.SimpleNamespace:
    def flash_attn_func(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False):
        assert causal and qv is None
        return attend_reference(q, k, v, spec=CAUSAL, layout=None, dropout=0.0), None

    def flash_attn_varlen_func(
        q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        min_seqlen_k=None, seqused_q=None, seqused_k=None, softmax_scale=None, causal=False,
    ):  # fmt: skip
        assert causal and qv is None and max_seqlen_q == max_seqlen_k == 43
        return per_document(q, k, v, cu_seqlens_q), None

    return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


def flash_3_stand_in() -> types.SimpleNamespace:
    def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None):
        assert causal and qv is None
        return attend_reference(q, k, v, spec=CAUSAL, layout=None, dropout=0.0)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, qv=None,
    ):  # fmt: skip
        assert causal and seqused_q is None and max_seqlen_q == max_seqlen_k == 43
        return per_document(q, k, v, cu_seqlens_q)

    return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


def flash_2_stand_in() -> types.SimpleNamespace:
    def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
        assert causal
        return attend_reference(q, k, v, spec=CAUSAL, layout=None, dropout=dropout_p)

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        assert causal and max_seqlen_q == max_seqlen_k == 43
        return per_document(q, k, v, cu_seqlens_q)

    return types.SimpleNamespace(flash_attn_func=flash_attn_func, flash_attn_varlen_func=flash_attn_varlen_func)


FLASH_PACKAGES = {
    "flash_attn.cute": flash_4_stand_in,
    "flash_attn_interface": flash_3_stand_in,
    "flash_attn": flash_2_stand_in,
}


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("package", FLASH_PACKAGES)
def test_flash_adapters_pass_the_right_arguments(package, documents, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, package, FLASH_PACKAGES[package]())
    assert_equals_reference(connect_flash(package), random_qkv(kv_heads=2), make_layout(documents))


def varlen_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal and query.shape[1] == key.shape[1]
    return per_document(query, key, value, cu_seq_q)


def varlen_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    assert window_size == (-1, 0) and query.shape[1] == key.shape[1]
    return per_document(query, key, value, cu_seq_q)


def varlen_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0) and enable_gqa
    return per_document(query, key, value, cu_seq_q)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("varlen_attn", [varlen_2_10, varlen_2_11, varlen_2_12])
def test_varlen_adapter_follows_the_signature(varlen_attn, documents, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    assert_equals_reference(connect_varlen(), random_qkv(kv_heads=2), make_layout(documents))


def test_the_cpu_gets_sdpa_and_the_reason():
    choice = choose_kernel(tiny_config(), CPU, torch.float32, document_masking=True)
    assert (
        choice.value.name == "sdpa" and "flash-attn 2" in choice.reason and "needs a CUDA GPU, not cpu" in choice.reason
    )


@pytest.mark.parametrize("wanted", ["sdpa", "reference"])
def test_a_kernel_can_be_asked_for(wanted):
    assert choose_kernel(tiny_config(), CPU, torch.float32, False, wanted).value.name == wanted


@pytest.mark.parametrize("wanted", ["flash", "varlen"])
def test_a_kernel_that_cannot_work_is_refused(wanted):
    with pytest.raises(ConfigError, match=f"engine.kernel: {wanted} cannot be used here: .*needs a CUDA GPU, not cpu"):
        choose_kernel(tiny_config(), CPU, torch.bfloat16, False, wanted)


@pytest.fixture
def hopper(monkeypatch):
    """Looks like an H100 with no FlashAttention package."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for package in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, package, None)


def test_a_gpu_takes_varlen_for_documents_only(hopper):
    config = tiny_config(head_size=64)
    assert choose_kernel(config, GPU, torch.bfloat16, document_masking=True).value.name == "varlen"
    whole_rows = choose_kernel(config, GPU, torch.bfloat16, document_masking=False)
    assert whole_rows.value.name == "sdpa" and "flash-attn 3: is not usable" in whole_rows.reason


def test_a_gpu_takes_the_newest_flash_package_that_fits(hopper, monkeypatch):
    config = tiny_config(head_size=64)
    monkeypatch.setitem(sys.modules, "flash_attn", flash_2_stand_in())
    assert choose_kernel(config, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 2")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", flash_3_stand_in())
    assert choose_kernel(config, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 3")
    dropping = tiny_config(head_size=64, dropout=0.1)
    assert choose_kernel(dropping, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 2")


@pytest.mark.parametrize(
    "changes, dtype, reason",
    [
        (dict(head_size=64), torch.float32, "computes in bf16 or fp16, not float32"),
        (dict(head_size=12), torch.bfloat16, "multiple of 8 up to 256, not 12"),
        (dict(head_size=512), torch.bfloat16, "multiple of 8 up to 256, not 512"),
        (dict(dropout=0.25), torch.bfloat16, "has no dropout (model.dropout is 0.25)"),
    ],
)
def test_limits_are_named(hopper, changes, dtype, reason):
    with pytest.raises(ConfigError) as error:
        choose_kernel(tiny_config(**changes), GPU, dtype, True, "varlen")
    assert reason in str(error.value)


def test_an_old_gpu_gets_sdpa(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    choice = choose_kernel(tiny_config(), GPU, torch.float16, True)
    assert choice.value.name == "sdpa" and "compute capability 7.5" in choice.reason
