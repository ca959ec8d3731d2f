"""The formula of activations against the tensors that are alive after a forward pass, and against the papers'."""

import pytest
import torch

from config import load_recipe
from config.activations import Activations
from config.block_memory import Arithmetic
from config.objective_schema import row_shape
from model import build
from model.adapters import add_adapter
from model.kernels import choose_kernel
from tests.workers.memory import LiveBytes

SIZE = (
    "model.num_layers=3", "model.hidden_size=64", "model.num_heads=4", "model.vocab_size=512", "model.max_positions=1024",
    "batch.micro_batch_size=2", "batch.global_batch_size=2", "schedule.warmup_steps=0",
)  # fmt: skip
FAMILIES = {
    "gpt2": ("gpt2_124m",),
    "gpt2, dropout": ("gpt2_124m", "model.dropout=0.1"),
    "llama": ("llama_1b", "model.num_kv_heads=2", "model.ffn_size=192"),
    "qwen3": ("llama_1b", "model.preset=qwen3", "model.num_kv_heads=2", "model.ffn_size=192"),
    "relu2": ("llama_1b", "model.activation=relu2", "model.num_kv_heads=4", "model.ffn_size=256"),
    "bert": ("bert_base",),
    "modernbert": (
        "modernbert_base",
        "data.document_masking=false",
        "model.local_window=null",
        "model.global_every=1",
        "model.ffn_size=192",
    ),
    "t5": ("t5_base", "model.ffn_size=192"),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_autocast": torch.float32}


def kept(precision: str, recipe: str, *overrides: str) -> tuple[int, int]:
    """Bytes that a model keeps for its backward pass on a CPU: by formula, and alive after a forward pass."""
    config = load_recipe(recipe, [*SIZE, *overrides])
    product = 4 if precision == "fp32" else 2
    weight = 2 if precision == "bf16" else 4
    compute = torch.float32 if product == 4 else torch.bfloat16
    kernel = choose_kernel(config.model, torch.device("cpu"), compute, False, config.engine.kernel)
    torch.manual_seed(0)
    policy = config.engine.activation_checkpointing
    shape = row_shape(config.objective, config.data.row_length)
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_autocast"):
        model = build(config.model, kernel=kernel, activation_checkpointing=policy)
        add_adapter(model, config)
        model.to(DTYPES[precision])
        weights = live.now
        hidden = model(
            *[torch.zeros(2, length, dtype=torch.long) for length in (shape.length, shape.decoder) if length]
        )
        alive = live.now - weights
    assert hidden.requires_grad
    copies = 2 * sum(p.numel() for name, p in model.named_parameters() if "proj.weight" in name)
    alive -= hidden.untyped_storage().nbytes() + (copies if product < weight else 0)
    activations = Activations(config, Arithmetic(product, weight, gpu=False, compiled=False))
    return activations.kept(), alive


@pytest.mark.parametrize("length", [256, 768])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_recomputation(family, precision, length):
    """Rows of 256 tokens make attention two products in bf16, longer ones leave it to SDPA."""
    planned, alive = kept(precision, *FAMILIES[family], f"data.row_length={length}")
    assert planned == pytest.approx(alive, rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_kernel_keeps_its_scores(precision):
    planned, alive = kept(precision, "gpt2_124m", "data.row_length=640", "engine.kernel=reference")
    assert planned == pytest.approx(alive, rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_windows_cut_into_blocks(precision):
    """Every other block of this ModernBERT sees 64 tokens to each side, which a CPU copies for their neighbours."""
    local = ("model.local_window=64", "model.global_every=2", "model.ffn_size=192", "data.row_length=768")
    planned, alive = kept(precision, "modernbert_base", *local, "data.document_masking=false")
    assert planned == pytest.approx(alive, rel=0.03)


@pytest.mark.parametrize("adapter", ["lora", "adalora", "houlsby"])
@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_with_an_adapter(family, precision, adapter):
    """The formula leaves out autocast's copies of an adapter's matrices, and that what comes before the first bottleneck
    keeps nothing."""
    sizes = ("data.row_length=768", "model.num_layers=8", "optimizer.embedding_lr_ratio=1")
    planned, alive = kept(precision, *FAMILIES[family], *sizes, f"adapter.name={adapter}")
    assert planned == pytest.approx(alive, rel=0.17 if (family, adapter) == ("t5", "houlsby") else 0.08)


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5"])
def test_with_recomputation(family, precision, policy):
    recompute = f"engine.activation_checkpointing={policy}"
    planned, alive = kept(precision, *FAMILIES[family], "data.row_length=640", recompute)
    assert planned == pytest.approx(alive, rel=0.03)


def test_gpt_on_a_gpu_keeps_the_papers_34sbh():
    """Korthikanti et al., arXiv:2205.05198, equation 2 without 5as/h, which flash attention does not keep."""
    config = load_recipe("gpt2_124m", ["model.dropout=0.1"])
    batch, length, width, layers = 16, 1024, 768, 12
    statistics = 2 * 2 * 4 + 4 * 12  # means and deviations of two norms, and attention's logarithms of sums
    outside = batch * length * (8 + 2 * width + 2 * 4 + width)
    planned = Activations(config, Arithmetic(product=2, weight=2, gpu=True, compiled=False)).kept()
    assert planned == layers * batch * length * (34 * width + statistics) + outside
