"""Llama, Mistral (with a sliding window) and Qwen3 (with QK-norm)."""

import re
from dataclasses import replace
from typing import Any

from config import ConfigError, GPTConfig
from model.hf.architecture import Architecture, require_equal


def _needs(config: GPTConfig) -> dict[str, tuple[Any, ...]]:
    multiple = -(-config.hidden_size // config.num_heads) * config.num_heads
    return dict(
        position=("rotary",), norm=("rmsnorm",), activation=("swiglu",), bias=(True, False), qk_norm=(False,),
        logit_softcap=(None,), attention_softcap=(None,), sliding_window=(None,), hidden_size=(multiple,),
    )  # fmt: skip


def _rope(config: GPTConfig) -> dict[str, Any]:
    return {
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
    }


def rope_theta(hf: dict[str, Any], rope: dict[str, Any]) -> float:
    """Base of rotary positions without scaling. Raises ConfigError if they are scaled."""
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ConfigError(f"rotary scaling of type {rope_type!r} is not supported, only 'default'")
    return float(rope.get("rope_theta", hf.get("rope_theta", 10000.0)))


def _read_rope(hf: dict[str, Any]) -> dict[str, Any]:
    return {"rope_theta": rope_theta(hf, hf.get("rope_parameters") or hf.get("rope_scaling") or {})}


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    auto_class="AutoModelForCausalLM",
    config=GPTConfig,
    preset="llama",
    needs=_needs,
    names={
        "model.embed_tokens": "embed_tokens",
        "model.layers.*.input_layernorm": "blocks.*.attention_norm",
        "model.layers.*.self_attn.q_proj": "blocks.*.attention.q_proj",
        "model.layers.*.self_attn.k_proj": "blocks.*.attention.k_proj",
        "model.layers.*.self_attn.v_proj": "blocks.*.attention.v_proj",
        "model.layers.*.self_attn.o_proj": "blocks.*.attention.output_proj",
        "model.layers.*.post_attention_layernorm": "blocks.*.feed_forward_norm",
        "model.layers.*.mlp.gate_proj": "blocks.*.feed_forward.gate_proj",
        "model.layers.*.mlp.up_proj": "blocks.*.feed_forward.up_proj",
        "model.layers.*.mlp.down_proj": "blocks.*.feed_forward.down_proj",
        "model.norm": "final_norm",
        "lm_head": "lm_head",
    },
    prefix="model.",
    settings={
        "max_position_embeddings": "max_positions",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_size",
        "intermediate_size": "ffn_size",
        "rms_norm_eps": "norm_eps",
    },
    write=lambda config: {**_rope(config), "attention_bias": config.bias, "mlp_bias": config.bias},
    read=lambda hf: {**_read_rope(hf), "bias": require_equal(hf, ("attention_bias", "mlp_bias"), False)},
    fixed={"hidden_act": ("silu",), "attention_dropout": (0.0,)},
    defaults={"tie_word_embeddings": False, "num_key_value_heads": None, "head_dim": None},
    ignored=re.compile(r"\.rotary_emb\.inv_freq$"),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    preset="mistral",
    needs=lambda config: _needs(config) | {"bias": (False,), "sliding_window": (config.sliding_window,)},
    settings=LLAMA.settings | {"sliding_window": "sliding_window"},
    write=_rope,
    read=_read_rope,
    defaults=LLAMA.defaults | {"sliding_window": 4096, "num_key_value_heads": 8},
)

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    preset="qwen3",
    needs=lambda config: _needs(config) | {"bias": (False,), "qk_norm": (True,), "hidden_size": (config.hidden_size,)},
    names=LLAMA.names
    | {
        "model.layers.*.self_attn.q_norm": "blocks.*.attention.q_norm",
        "model.layers.*.self_attn.k_norm": "blocks.*.attention.k_norm",
    },
    write=_rope,
    read=_read_rope,
    fixed=LLAMA.fixed | {"attention_bias": (False,), "use_sliding_window": (False,)},
    defaults=LLAMA.defaults | {"num_key_value_heads": 32, "head_dim": 128},
)
