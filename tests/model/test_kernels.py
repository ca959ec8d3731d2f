"""Every attention kernel against the reference, in every feature it claims.

The GPU kernels run only where they can. Their adapters are also tested on the CPU with stand-ins that have the real
packages' arguments.
"""

import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.kernels import CASES, Case, errors
from model.kernels import BACKENDS, Backend, Connection, find_obstacle
from model.kernels.choose import connect_sdpa
from model.kernels.flash import connect_flash
from model.kernels.flex import connect_flex
from model.kernels.reference import attend_reference
from model.kernels.sdpa import attend_sdpa
from model.kernels.varlen import connect_varlen
from model.layout import Layout
from model.spec import AttentionSpec
from tests.model import stand_ins
from tests.model.tiny import assert_close, tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CAUSAL = AttentionSpec()
BY_NAME = {case.name: case for case in CASES}


def assert_equals_reference(connection: Connection, case: Case, *, dtype=torch.float32, device=CPU, **options) -> None:
    if lacking := set(case.features) - connection.features:
        pytest.skip(f"has no {', '.join(lacking)}, and claims none")
    found = errors(connection.attend, case, device, dtype, **options)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    assert max(found) < tolerance, f"{case.name}: errors of output, dq, dk, dv, dbias: {found}"


def each_case(function):
    return pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)(function)


@each_case
def test_sdpa_equals_reference(case):
    assert_equals_reference(connect_sdpa(), case, size=16)


@each_case
def test_two_products_equal_reference(case, monkeypatch):
    monkeypatch.setattr("model.kernels.sdpa._prefers_products", lambda *_: True)
    assert_equals_reference(connect_sdpa(), case, size=16)


@each_case
def test_short_rows_in_bf16_equal_reference_without_sdpa(case):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):  # nothing here can run it
        assert_equals_reference(connect_sdpa(), case, dtype=torch.bfloat16, size=16)


@each_case
def test_flex_equals_reference(case):
    assert_equals_reference(connect_flex(), case, size=16, backward=False)  # it has no backward pass on a CPU


@pytest.mark.parametrize("package", stand_ins.FLASH)
@each_case
def test_flash_adapters_pass_the_right_arguments(case, package, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, package, stand_ins.FLASH[package]())
    assert_equals_reference(connect_flash(package), case, size=16)


@pytest.mark.parametrize("varlen_attn", stand_ins.VARLEN)
@each_case
def test_varlen_adapter_follows_the_signature(case, varlen_attn, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    assert_equals_reference(connect_varlen(), case, size=16)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: f"{backend.name}-{backend.source}")
def test_gpu_kernels_equal_reference(backend: Backend, size):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    if obstacle := find_obstacle(backend, tiny_config(head_size=size), GPU, torch.bfloat16):
        pytest.skip(f"{backend.source}: {obstacle}")
    connection = backend.connect()
    for case in CASES:
        if connection.features.issuperset(case.features):
            assert_equals_reference(connection, case, dtype=torch.bfloat16, device=GPU, size=size)


@pytest.mark.parametrize(
    "attend, spec",
    [
        (attend_reference, CAUSAL),
        (attend_sdpa, CAUSAL),
        (attend_sdpa, AttentionSpec(window=50)),
        (attend_sdpa, AttentionSpec(softcap=2.0)),
        (connect_flex().attend, AttentionSpec(window=50)),
    ],
)
@pytest.mark.parametrize("newest", [1, 3])
def test_the_newest_queries_see_the_cached_keys(attend, spec, newest):
    q, k, v = (x.detach() for x in BY_NAME["grouped heads"].inputs(CPU, torch.float32, 16))
    whole = attend_reference(q, k, v, spec=spec, layout=None, dropout=0.0)
    last = attend(q[:, -newest:], k, v, spec=spec, layout=None, dropout=0.0)
    assert_close(last, whole[:, -newest:], "last rows")


@pytest.mark.parametrize("case", [BY_NAME["grouped heads"], BY_NAME["documents"], BY_NAME["two-sided window"]])
def test_sdpa_takes_the_flash_path_on_the_cpu(case):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attend_sdpa(*case.inputs(CPU, torch.float32, 16), spec=case.spec, dropout=0.0, **case.layouts(CPU))


@pytest.mark.parametrize("backend", BACKENDS[-3:], ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ["documents", "window in documents", "cross, padded keys", "two-sided in documents"])
def test_prepared_masks_change_nothing(backend, name):
    case = BY_NAME[name]
    q, k, v = (x.detach() for x in case.inputs(CPU, torch.float32, 16))
    layout, keys = case.layouts(CPU).values()
    prepared = backend.prepare(case.spec, q.flatten(2), layout, keys)
    layouts = {"layout": layout, "keys": prepared} if case.cross else {"layout": prepared, "keys": None}
    attend = backend.connect().attend
    expected = attend(q, k, v, spec=case.spec, dropout=0.0, **case.layouts(CPU))
    assert torch.equal(attend(q, k, v, spec=case.spec, dropout=0.0, **layouts), expected)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("spec", [AttentionSpec(window=24), AttentionSpec(causal=False, window=24, softcap=3.0)])
def test_windows_in_blocks_equal_reference(spec, documents, kv_heads, monkeypatch):
    monkeypatch.setattr("model.kernels.sdpa.dense_mask", None)  # it is not asked
    assert_equals_reference(connect_sdpa(), Case("blocks", spec, (), documents, kv_heads), size=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["documents", "bidirectional documents", "window in documents", "softcap in documents"]
)
def test_documents_of_one_row_one_by_one_equal_reference(name, dtype):
    case = BY_NAME[name]
    q, k, v = (x[:1].detach().to(dtype) for x in case.inputs(CPU, torch.float32, 16))
    layout = Layout.packed([5, 145, 42])
    prepared = BACKENDS[-2].prepare(case.spec, q.flatten(2), layout, None)
    assert prepared is layout  # no mask of all by all
    expected = attend_reference(q, k, v, spec=case.spec, layout=layout, dropout=0.0)
    with torch.inference_mode():
        actual = attend_sdpa(q, k, v, spec=case.spec, layout=prepared, dropout=0.0)
    assert_close(actual, expected, name, 1e-5 if dtype == torch.float32 else 2e-2)


def test_a_pass_without_gradients_is_the_one_that_is_repeated_with_them():
    """Dropout included, as GradCache's two passes need it."""
    q, k, v = (x.to(torch.bfloat16) for x in BY_NAME["causal"].inputs(CPU, torch.float32, 16))
    outputs = []
    for gradients in (False, True):
        torch.manual_seed(0)
        with torch.set_grad_enabled(gradients):
            outputs.append(attend_sdpa(q, k, v, spec=CAUSAL, layout=None, dropout=0.3))
    assert torch.equal(*outputs)


def test_cross_attention_sees_the_texts_and_not_their_padding():
    q, k, v = (x.detach() for x in BY_NAME["cross"].inputs(CPU, torch.float32, 16))
    keys = Layout.padded([160, 90], 160)
    padded = attend_sdpa(q, k, v, spec=AttentionSpec(causal=False), layout=None, keys=keys, dropout=0.0)
    alone = attend_sdpa(q[1:], k[1:, :90], v[1:, :90], spec=AttentionSpec(causal=False), layout=None, dropout=0.0)
    assert_close(padded[1:], alone, "second row")
    # A padded row of queries meets a whole row of keys: its text sees the text, and nothing is NaN.
    both = attend_sdpa(
        q, k, v, spec=AttentionSpec(causal=False), layout=Layout.padded([100, 192], 192), keys=keys, dropout=0.0
    )
    assert_close(both[0, :100], padded[0, :100], "text of the first row")
    assert both.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS[-2:], ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ["documents", "two-sided window", "softcap", "bias", "cross, padded keys"])
def test_kernels_for_the_cpu_compile_without_graph_breaks(backend, name):
    torch._dynamo.reset()
    case, attend = BY_NAME[name], backend.connect().attend
    compiled = Connection(
        torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager"), connect_sdpa().features
    )
    assert_equals_reference(compiled, case, size=16)
