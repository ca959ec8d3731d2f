"""Tiny models and comparisons shared by the tests of model/."""

from typing import Any

import torch

import model
from config import BertConfig, GPTConfig, T5Config, TransformerConfig


def tiny_config(preset: str = "llama", **changes: Any) -> Any:
    """Two layers, 32 wide, 4 heads; weights large enough that every part of the model matters."""
    sizes = dict(vocab_size=96, num_layers=2, hidden_size=32, num_heads=4, max_positions=64, init_std=0.2)
    if preset in BertConfig.PRESETS:
        return BertConfig(preset=preset, **{**sizes, "dropout": 0.0, **changes})
    if preset != "gpt2":
        sizes["num_kv_heads"] = 2
    return GPTConfig(preset=preset, **{**sizes, **changes})


def tiny_t5(**changes: Any) -> T5Config:
    """Two layers above three, 32 wide, 4 heads, few buckets, so that short rows have distances in each of them."""
    sizes = dict(
        vocab_size=96, num_layers=2, num_decoder_layers=3, hidden_size=32, num_heads=4, ffn_size=48, max_positions=64,
        relative_buckets=8, relative_max_distance=16,
    )  # fmt: skip
    return T5Config(**{**sizes, **changes})


def tiny_model(config: TransformerConfig, **options: Any) -> Any:
    """A model with every weight away from its special values 0 and 1, so that each of them is tested."""
    built = model.build(config, **options)
    model.init_weights(built, config, seed=7)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith(("norm.weight", ".bias")):
                parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3, generator=generator)
    return built.eval()


def random_tokens(config: TransformerConfig, rows: int = 3, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` of the largest expected magnitude (or of 1 for small ones)."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    difference = (actual.double() - expected.double()).abs()
    scale = max(1.0, expected.double().abs().max().item())
    assert difference.max() <= tolerance * scale, (
        f"{what}: max difference {difference.max():.2e}, mean {difference.mean():.2e}, "
        f"allowed {tolerance * scale:.2e} at magnitude {scale:.2e}"
    )
