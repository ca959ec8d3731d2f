"""Parameters and FLOPs against published numbers, built models and counted operations."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import BertConfig, GPTConfig, T5Config, load_recipe
from config.count import count_parameters, head_flops, sample_flops
from config.derive import derive
from config.objective_schema import CausalLM, Contrastive, MaskedLM, PrefixLM, RowShape
from model import build

TINY: dict[str, Any] = {"vocab_size": 96, "num_layers": 3, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
SHAPES = [
    GPTConfig(**TINY, preset="gpt2"),
    GPTConfig(**TINY, preset="llama"),
    GPTConfig(**TINY, preset="qwen3", num_kv_heads=2),
    GPTConfig(**TINY, preset="qwen3", head_size=16, ffn_size=40, tied_embeddings=True),
    GPTConfig(**TINY, preset="gpt2", activation="relu2", bias=False, tied_embeddings=False, qk_norm=True),
    GPTConfig(**TINY, preset="llama", bias=True, num_kv_heads=1, activation="gelu", position="learned"),
    BertConfig(**TINY, preset="bert"),
    BertConfig(**TINY, preset="bert", bias=False, pooler=False, tied_embeddings=False, qk_norm=True),
    BertConfig(**TINY, preset="modernbert", norm="rmsnorm"),
    BertConfig(**TINY, preset="modernbert", bias=True),
    T5Config(**TINY, preset="t5_v1_1"),
    T5Config(**TINY, preset="t5_v1_1", num_decoder_layers=2, num_kv_heads=2, tied_embeddings=True, qk_norm=True),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.preset}-{SHAPES.index(c)}")
def test_parameters_equal_the_built_models(config):
    with torch.device("meta"):
        model = build(config)
    counts, built = count_parameters(config), {n: p.numel() for n, p in model.named_parameters()}

    def of(*words: str) -> int:
        return sum(size for name, size in built.items() if any(word in name for word in words))

    projections = ("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm")
    assert counts.total == sum(built.values())
    assert counts.embedding == of("embed_tokens")
    assert counts.positions == of("embed_positions", "embed_token_types", "relative_embed")
    assert counts.attention == of(*projections)
    assert counts.ffn == of("gate_proj", "up_proj", "down_proj")
    assert counts.head == of("lm_head")
    assert counts.largest_block == of("decoder.blocks.0." if config.family == "t5" else "blocks.1.")
    assert counts.non_embedding == counts.attention + counts.ffn + counts.norms


PUBLISHED: list[tuple[str, Any, int]] = [
    ("GPT-2 small", GPTConfig(preset="gpt2", vocab_size=50257, num_layers=12, hidden_size=768, num_heads=12), 124_439_808),
    ("GPT-2 XL", GPTConfig(preset="gpt2", vocab_size=50257, num_layers=48, hidden_size=1600, num_heads=25), 1_557_611_200),
    ("Llama 2 7B", GPTConfig(preset="llama", vocab_size=32000, num_layers=32, hidden_size=4096, num_heads=32, ffn_size=11008), 6_738_415_616),
    ("Llama 2 70B", GPTConfig(preset="llama", vocab_size=32000, num_layers=80, hidden_size=8192, num_heads=64, num_kv_heads=8, ffn_size=28672), 68_976_648_192),
    ("Qwen3 0.6B", GPTConfig(preset="qwen3", vocab_size=151936, num_layers=28, hidden_size=1024, num_heads=16, num_kv_heads=8, head_size=128, ffn_size=3072, tied_embeddings=True), 596_049_920),
    ("BertForPreTraining base", BertConfig(preset="bert", vocab_size=30522, num_layers=12, hidden_size=768, num_heads=12), 110_106_428),
    ("ModernBERT base", BertConfig(preset="modernbert", vocab_size=50368, num_layers=22, hidden_size=768, num_heads=12, ffn_size=1152), 149_655_232),
    ("T5 1.1 base", T5Config(vocab_size=32128, num_layers=12, hidden_size=768, num_heads=12, ffn_size=2048), 247_577_856),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "published"), PUBLISHED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_parameters_of_published_models(name, config, published):
    assert count_parameters(config).total == published


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.preset}-{SHAPES.index(c)}")
def test_flops_are_three_forward_passes_of_counted_products(config):
    """Torch counts 2 for each multiply-add of the forward pass; the backward pass takes twice as many."""
    model = build(config, kernel="reference")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    tokens, shape = torch.zeros(1, 16, dtype=torch.long), RowShape(16, 16, decoder=8 if config.family == "t5" else 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.logits(model(tokens, *([tokens[:, :8]] if config.family == "t5" else [])))
    objective = PrefixLM() if config.family == "t5" else CausalLM()
    assert sample_flops(config, objective, shape) == 3 * counter.get_total_flops()


def test_flops_by_objective_and_window():
    gpt = GPTConfig(**TINY)
    rows = sample_flops(gpt, CausalLM(), RowShape(16, 16)) - head_flops(gpt, 16)
    assert sample_flops(gpt, Contrastive(), RowShape(28, 16, rows=2)) == 2 * rows
    near = GPTConfig(**TINY, preset="mistral", sliding_window=4)
    assert rows - (sample_flops(near, CausalLM(), RowShape(16, 16)) - head_flops(near, 16)) == 3 * 12 * 32 * 16 * 12
    bert, some, all_ = BertConfig(**TINY), MaskedLM(mask_rate=0.25), MaskedLM(mask_rate=1.0)
    difference = sample_flops(bert, all_, RowShape(16, 16)) - sample_flops(bert, some, RowShape(16, 16))
    assert difference == head_flops(bert, 12) == 6 * 12 * 32 * (96 + 32)


def test_flops_of_gpt2_as_commonly_stated():
    assert derive(load_recipe("gpt2_124m"), 1).flops_per_token == pytest.approx(0.855e9, rel=1e-3)
