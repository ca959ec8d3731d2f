"""Batch arithmetic, parameter counts and FLOPs against published numbers, built models and counted operations."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import ConfigError, GPTConfig, load_recipe
from config.derive import count_parameters, derive, flops_per_token
from model import build

TINY = {"vocab_size": 96, "num_layers": 3, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
SHAPES = [
    {"preset": "gpt2"},
    {"preset": "llama"},
    {"preset": "qwen3", "num_kv_heads": 2},
    {"preset": "qwen3", "head_size": 16, "ffn_size": 40, "tied_embeddings": True},
    {"preset": "gpt2", "activation": "relu2", "bias": False, "tied_embeddings": False, "qk_norm": True},
    {"preset": "llama", "bias": True, "num_kv_heads": 1, "activation": "gelu", "position": "learned"},
]


def debug(*overrides: str):
    return load_recipe("gpt_debug", overrides)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_parameters_equal_the_built_models(shape):
    config = GPTConfig(**TINY, **shape)
    counts, built = count_parameters(config), {n: p.numel() for n, p in build(config).named_parameters()}

    def of(*words: str) -> int:
        return sum(size for name, size in built.items() if any(word in name for word in words))

    assert counts.total == sum(built.values())
    assert counts.embedding == of("embed_tokens")
    assert counts.positions == of("embed_positions")
    assert counts.attention == of("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm")
    assert counts.ffn == of("gate_proj", "up_proj", "down_proj")
    assert counts.head == of("lm_head")
    assert counts.largest_block == of("blocks.0.")
    assert counts.non_embedding == counts.attention + counts.ffn + counts.norms


@pytest.mark.parametrize(
    ("name", "shape", "published"),
    [
        ("GPT-2 small", dict(preset="gpt2", vocab_size=50257, num_layers=12, hidden_size=768, num_heads=12), 124_439_808),
        ("GPT-2 XL", dict(preset="gpt2", vocab_size=50257, num_layers=48, hidden_size=1600, num_heads=25), 1_557_611_200),
        ("Llama 2 7B", dict(preset="llama", vocab_size=32000, num_layers=32, hidden_size=4096, num_heads=32, ffn_size=11008), 6_738_415_616),
        ("Qwen3 0.6B", dict(preset="qwen3", vocab_size=151936, num_layers=28, hidden_size=1024, num_heads=16, num_kv_heads=8, head_size=128, ffn_size=3072, tied_embeddings=True), 596_049_920),
    ],
)  # fmt: skip
def test_parameters_of_published_models(name, shape, published):
    assert count_parameters(GPTConfig(**shape)).total == published


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flops_are_three_forward_passes_of_counted_products(shape):
    """Torch counts 2 for each multiply-add of the forward pass; the backward pass takes twice as many."""
    config = GPTConfig(**TINY, **shape)
    model = build(config, kernel="reference")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    tokens = torch.zeros(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(tokens))
    assert flops_per_token(config, 16) == 3 * counter.get_total_flops() / 16


def test_flops_of_gpt2_as_commonly_stated():
    shape = GPTConfig(preset="gpt2", vocab_size=50304, num_layers=12, hidden_size=768, num_heads=12)
    assert flops_per_token(shape, 1024) == pytest.approx(0.855e9, rel=1e-3)


def test_batch_equation_and_totals():
    derived = derive(debug("batch.global_batch_size=64", "batch.micro_batch_size=8"), 2)
    assert derived.batch_equation == "64 rows = 8 micro × 4 accumulation × 2 ranks; × 64 tokens = 4,096 tokens a step"
    assert (derived.accumulation_steps, derived.tokens_per_step, derived.total_tokens) == (4, 4096, 20 * 4096)
    assert derived.total_flops == derived.flops_per_token * 81920


@pytest.mark.parametrize(
    ("rows", "micro", "ranks", "fixes"),
    [
        (64, 12, 2, "batch.global_batch_size to 48 or 72, or batch.micro_batch_size to 8 or 16"),
        (64, 8, 3, "batch.global_batch_size to 48 or 72, or the number of ranks to 2 or 4"),
        (7, 8, 3, "batch.global_batch_size to 24"),
        (8, 16, 1, "batch.global_batch_size to 16, or batch.micro_batch_size to 8"),
        (12, 4, 2, "batch.global_batch_size to 8 or 16, or batch.micro_batch_size to 3 or 6, or the number of ranks to 1 or 3"),
    ],
)  # fmt: skip
def test_an_indivisible_batch_names_the_nearest_choices_that_work(rows, micro, ranks, fixes):
    with pytest.raises(ConfigError) as error:
        derive(debug(f"batch.global_batch_size={rows}", f"batch.micro_batch_size={micro}"), ranks)
    assert str(error.value) == (
        f"batch.global_batch_size {rows} is not a multiple of batch.micro_batch_size {micro} × {'1 rank' if ranks == 1 else f'{ranks} ranks'} "
        f"= {micro * ranks}: set {fixes}"
    )


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(ranks):
    derived = derive(debug("batch.global_batch_size=48", "batch.micro_batch_size=2"), ranks)
    assert 2 * ranks * derived.accumulation_steps == 48
