"""Our GPTConfig ↔ the config.json of Hugging Face's GPT-2, Llama and Qwen3."""

from typing import Any

from pydantic import ValidationError

from config import ConfigError, GPTConfig

CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}

NEEDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": dict(
        position=("learned",), norm=("layernorm",), activation=("gelu", "gelu_tanh", "relu2"), bias=(True,),
        qk_norm=(False,), logit_softcap=(None,),
    ),
    "llama": dict(
        position=("rotary",), norm=("rmsnorm",), activation=("swiglu",), bias=(True, False),
        qk_norm=(False,), logit_softcap=(None,),
    ),
    "qwen3": dict(
        position=("rotary",), norm=("rmsnorm",), activation=("swiglu",), bias=(False,),
        qk_norm=(True,), logit_softcap=(None,),
    ),
}  # fmt: skip
"""Values of our settings that each architecture can express."""

GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu2": "relu2"}

FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": dict(scale_attn_weights=(True,), scale_attn_by_inverse_layer_idx=(False,), add_cross_attention=(False,)),
    "llama": dict(hidden_act=("silu",)),
    "qwen3": dict(hidden_act=("silu",), attention_bias=(False,), use_sliding_window=(False,)),
}
"""Values of Hugging Face's settings that we can express; the first is the default of a missing one."""


def architecture(config: GPTConfig) -> str:
    """The Hugging Face architecture that computes the same function: gpt2, llama or qwen3.

    Raises ConfigError naming the setting that none of them has.
    """
    name = "gpt2" if config.position == "learned" else "qwen3" if config.qk_norm else "llama"
    for setting, values in NEEDS[name].items():
        if getattr(config, setting) not in values:
            raise _no_equivalent(name, setting, getattr(config, setting), " or ".join(map(str, values)))
    if name == "gpt2" and config.kv_heads != config.num_heads:
        raise _no_equivalent(name, "num_kv_heads", config.kv_heads, str(config.num_heads))
    if name == "gpt2" and config.head_width * config.num_heads != config.hidden_size:
        raise _no_equivalent(name, "head_size", config.head_width, "hidden_size / num_heads")
    if name == "llama" and config.hidden_size % config.num_heads:
        raise _no_equivalent(name, "hidden_size", config.hidden_size, f"a multiple of num_heads {config.num_heads}")
    return name


def _no_equivalent(name: str, setting: str, value: Any, needed: str) -> ConfigError:
    return ConfigError(
        f"model.{setting}: {value} has no equivalent in Hugging Face's {CLASSES[name]}, the nearest architecture, "
        f"which needs {needed}: such a model cannot be exported"
    )


def to_hf_config(config: GPTConfig, *, dtype: str, end_of_text: int | None) -> dict[str, Any]:
    """Content of config.json. `end_of_text` is the token that separates documents; it opens and ends a text."""
    name = architecture(config)
    common = {
        "architectures": [CLASSES[name]],
        "model_type": name,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    if name == "gpt2":
        return common | {
            "n_positions": config.max_positions,
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.ffn_width,
            "activation_function": {ours: theirs for theirs, ours in reversed(GPT2_ACTIVATIONS.items())}[
                config.activation
            ],
            "layer_norm_epsilon": config.norm_eps,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    return common | {
        "max_position_embeddings": config.max_positions,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "attention_dropout": 0.0,
    }


def from_hf_config(hf: dict[str, Any], source: str) -> GPTConfig:
    """GPTConfig of a parsed config.json; `source` names it in messages.

    Raises ConfigError when the model uses something we do not have, or a setting is missing.
    """
    name = hf.get("model_type")
    if name not in CLASSES:
        raise ConfigError(f"{source}: model_type {name!r} is not one of {', '.join(CLASSES)}")
    for setting, values in FIXED[name].items():
        _require(hf, source, setting, values)
    try:
        settings = _gpt2_settings(hf, source) if name == "gpt2" else _rotary_settings(hf, source)
        tied = hf.get("tie_word_embeddings", name == "gpt2")
        return GPTConfig(preset=name, vocab_size=hf["vocab_size"], tied_embeddings=tied, **settings)
    except KeyError as error:
        raise ConfigError(f"{source}: setting {error} is missing") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{source}: {problems}") from None


def _require(hf: dict[str, Any], source: str, setting: str, values: tuple[Any, ...]) -> Any:
    value = hf.get(setting, values[0])
    if value not in values:
        raise ConfigError(f"{source}: {setting} {value!r} is not supported, only {' or '.join(map(repr, values))}")
    return value


def _gpt2_settings(hf: dict[str, Any], source: str) -> dict[str, Any]:
    dropout = hf.get("resid_pdrop", 0.1)
    for other in ("embd_pdrop", "attn_pdrop"):
        _require({"embd_pdrop": 0.1, "attn_pdrop": 0.1, **hf}, source, other, (dropout,))
    return {
        "max_positions": hf["n_positions"],
        "hidden_size": hf["n_embd"],
        "num_layers": hf["n_layer"],
        "num_heads": hf["n_head"],
        "ffn_size": hf.get("n_inner"),
        "activation": GPT2_ACTIVATIONS[_require(hf, source, "activation_function", tuple(GPT2_ACTIVATIONS))],
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "init_std": hf.get("initializer_range", 0.02),
        "dropout": dropout,
    }


def _rotary_settings(hf: dict[str, Any], source: str) -> dict[str, Any]:
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ConfigError(f"{source}: rotary scaling of type {rope_type!r} is not supported, only 'default'")
    if hf.get("sliding_window") and hf.get("use_sliding_window", True):
        raise ConfigError(f"{source}: sliding_window {hf['sliding_window']} is not supported, only full attention")
    bias = hf.get("attention_bias", False)
    _require({"mlp_bias": False, **hf}, source, "mlp_bias", (bias,))
    return {
        "max_positions": hf["max_position_embeddings"],
        "hidden_size": hf["hidden_size"],
        "num_layers": hf["num_hidden_layers"],
        "num_heads": hf["num_attention_heads"],
        "num_kv_heads": hf.get("num_key_value_heads"),
        "head_size": hf.get("head_dim"),
        "ffn_size": hf["intermediate_size"],
        "norm_eps": hf["rms_norm_eps"],
        "rope_theta": float(rope.get("rope_theta", hf.get("rope_theta", 10000.0))),
        "init_std": hf.get("initializer_range", 0.02),
        "bias": bias,
    }
