"""Which attention kernel a model gets on which machine, and why."""

import sys

import pytest
import torch

from config import BertConfig, ConfigError, GPTConfig, T5Config
from model.kernels import BACKENDS, choose_kernel, find_obstacle
from model.spec import needed_features
from tests.model import stand_ins
from tests.model.tiny import tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SIZES = dict(vocab_size=96, num_layers=2, hidden_size=256, num_heads=4)
BERT, MODERN_BERT = BertConfig(**SIZES, dropout=0.0), BertConfig(preset="modernbert", **SIZES)
T5, MISTRAL = T5Config(**SIZES), GPTConfig(preset="mistral", max_positions=8192, **SIZES)
CAPPED = tiny_config(head_size=64, attention_softcap=50.0)


def chosen(config, device=GPU, dtype=torch.bfloat16, document_masking=False, wanted="auto") -> str:
    return choose_kernel(config, device, dtype, document_masking, wanted).value.name


def test_the_cpu_gets_sdpa_and_the_reason():
    choice = choose_kernel(tiny_config(), CPU, torch.float32, document_masking=True)
    assert (
        choice.value.name == "sdpa" and "flash-attn 2" in choice.reason and "needs a CUDA GPU, not cpu" in choice.reason
    )


@pytest.mark.parametrize("config", [BERT, MODERN_BERT, T5, MISTRAL, CAPPED], ids=lambda config: config.preset)
def test_sdpa_serves_every_family_on_the_cpu(config):
    assert chosen(config, CPU) == "sdpa"


@pytest.mark.parametrize("wanted", ["sdpa", "reference"])
def test_a_kernel_can_be_asked_for(wanted):
    assert chosen(tiny_config(), CPU, torch.float32, False, wanted) == wanted


@pytest.mark.parametrize("wanted", ["flash", "varlen", "flex"])
def test_a_kernel_that_cannot_work_is_refused(wanted):
    with pytest.raises(ConfigError, match=f"engine.kernel: {wanted} cannot be used here: .*needs a CUDA GPU, not cpu"):
        chosen(tiny_config(), CPU, wanted=wanted)


@pytest.mark.parametrize(
    ("config", "needs"),
    [
        (tiny_config(), {}),
        (MISTRAL, {"window": "model.sliding_window is 4096"}),
        (MISTRAL.model_copy(update={"max_positions": 2048}), {}),  # the window never ends
        (CAPPED, {"softcap": "model.attention_softcap is 50"}),
        (BERT, {"bidirectional": "model.family is bert"}),
        (MODERN_BERT, {"bidirectional": "model.family is bert", "window": "model.local_window is 64"}),
    ],
)
def test_needs_name_their_settings(config, needs):
    assert needed_features(config) == needs


@pytest.fixture
def hopper(monkeypatch):
    """Looks like an H100 with torch 2.12 or later and no FlashAttention package."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_ins.varlen_2_12)
    for package in ("flash_attn", "flash_attn.cute", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, package, None)


def test_a_gpu_takes_varlen_for_documents_and_windows(hopper):
    config = tiny_config(head_size=64)
    assert chosen(config, document_masking=True) == "varlen"
    assert chosen(MISTRAL) == chosen(MODERN_BERT) == "varlen"
    whole_rows = choose_kernel(config, GPU, torch.bfloat16, document_masking=False)
    assert whole_rows.value.name == "sdpa" and "flash-attn 3: is not usable" in whole_rows.reason


def test_a_gpu_takes_flex_where_nothing_else_fuses(hopper, monkeypatch):
    assert chosen(CAPPED) == "flex"
    assert chosen(tiny_config(head_size=64), dtype=torch.float32, document_masking=True) == "flex"
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_ins.varlen_2_10)
    assert chosen(MISTRAL) == "flex"
    assert chosen(T5) == "sdpa"


def test_a_gpu_takes_the_newest_flash_package_that_fits(hopper, monkeypatch):
    config = tiny_config(head_size=64)
    monkeypatch.setitem(sys.modules, "flash_attn", stand_ins.flash_2())
    assert choose_kernel(config, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 2")
    monkeypatch.setitem(sys.modules, "flash_attn_interface", stand_ins.flash_3())
    for fitting in (config, BERT, MODERN_BERT, MISTRAL, CAPPED):
        assert choose_kernel(fitting, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 3")
    dropping = tiny_config(head_size=64, dropout=0.1)
    assert choose_kernel(dropping, GPU, torch.bfloat16, True).reason.startswith("from flash-attn 2")
    with pytest.raises(ConfigError, match=r"flash-attn 3, flash-attn 2: has no bias \(model.position is relative\)"):
        chosen(T5, wanted="flash")


def test_an_old_flash_package_is_passed_over(hopper, monkeypatch):
    old = stand_ins.flash_2()
    old.flash_attn_func = stand_ins.without(old.flash_attn_func, "softcap")
    monkeypatch.setitem(sys.modules, "flash_attn", old)
    flash_2 = next(backend for backend in BACKENDS if backend.source == "flash-attn 2")
    assert find_obstacle(flash_2, CAPPED, GPU, torch.bfloat16) == "has no softcap (model.attention_softcap is 50)"
    assert not find_obstacle(flash_2, MISTRAL, GPU, torch.bfloat16)


@pytest.mark.parametrize(
    ("config", "dtype", "reason"),
    [
        (tiny_config(head_size=64), torch.float32, "computes in bfloat16, float16, not float32"),
        (tiny_config(head_size=12), torch.bfloat16, "multiple of 8 up to 256, not 12"),
        (tiny_config(head_size=512), torch.bfloat16, "multiple of 8 up to 256, not 512"),
        (tiny_config(head_size=64, dropout=0.25), torch.bfloat16, "has no dropout (model.dropout is 0.25)"),
        (CAPPED, torch.bfloat16, "has no softcap (model.attention_softcap is 50)"),
        (T5, torch.bfloat16, "no bias (model.position is relative)"),
    ],
)
def test_limits_are_named(hopper, config, dtype, reason):
    with pytest.raises(ConfigError) as error:
        chosen(config, GPU, dtype, True, "varlen")
    assert reason in str(error.value)


def test_an_old_gpu_gets_sdpa(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    choice = choose_kernel(tiny_config(), GPU, torch.float16, True)
    assert choice.value.name == "sdpa" and "compute capability 7.5" in choice.reason
