"""ModernBERT. Query, key and value are one matrix, and so are gate and up projection."""

from typing import Any

from config import BertConfig, ConfigError
from model.hf.architecture import Architecture, plain_heads, require, require_equal
from model.hf.llama import rope_theta

DROPOUTS = ("embedding_dropout", "attention_dropout", "mlp_dropout")
BIASES = ("attention_bias", "mlp_bias", "norm_bias", "classifier_bias")
GATES = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh"}
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
EVERYWHERE, NEAR = "full_attention", "sliding_attention"


def _needs(config: BertConfig) -> dict[str, tuple[Any, ...]]:
    return dict(
        position=("rotary",), norm_order=("pre",), norm=("layernorm",), activation=tuple(GATES.values()),
        qk_norm=(False,), logit_softcap=(None,), attention_softcap=(None,), token_types=(0,), pooler=(False,),
        **plain_heads(config),
    )  # fmt: skip


def _write(config: BertConfig) -> dict[str, Any]:
    activation = next(theirs for theirs, ours in GATES.items() if ours == config.activation)
    thetas = {EVERYWHERE: config.rope_theta, NEAR: config.local_rope_theta or config.rope_theta}
    return {
        "hidden_activation": activation,
        "classifier_activation": activation,
        "classifier_pooling": "cls",
        "initializer_cutoff_factor": 2.0,  # nothing depends on it, but text-embeddings-inference asks for it
        "layer_types": [NEAR if config.is_local(i) else EVERYWHERE for i in range(config.num_layers)],
        "global_attn_every_n_layers": 1 if config.local_window is None else config.global_every,
        "local_attention": 2 * (config.local_window or 64),
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
        "global_rope_theta": thetas[EVERYWHERE],
        "local_rope_theta": thetas[NEAR],
        **dict.fromkeys(BIASES, config.bias),
        **dict.fromkeys(DROPOUTS, config.dropout),
        **dict.fromkeys(TOKENS),  # those that transformers supposes lie outside of other vocabularies
    }


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    activation = require(hf, "hidden_activation", ("gelu", *GATES))
    require(hf, "classifier_activation", (activation,))
    rope = hf.get("rope_parameters") or {}
    every = _global_every(hf)
    window = hf.get("local_attention", 128)
    return {
        "activation": GATES[activation],
        "rope_theta": rope_theta({"rope_theta": hf.get("global_rope_theta", 160_000.0)}, rope.get(EVERYWHERE) or {}),
        "local_rope_theta": rope_theta({"rope_theta": hf.get("local_rope_theta", 10_000.0)}, rope.get(NEAR) or {}),
        "local_window": None if every == 1 else window // 2,
        "global_every": every,
        "bias": require_equal(hf, BIASES, False),
        "dropout": require_equal(hf, DROPOUTS, 0.0),
    }


def _global_every(hf: dict[str, Any]) -> int:
    """n where blocks 0, n, 2n, ... see everything. Raises ConfigError if they stand otherwise."""
    types = hf.get("layer_types")
    if types is None:
        return hf.get("global_attn_every_n_layers", 3)
    every = next((i for i, kind in enumerate(types) if i and kind == EVERYWHERE), len(types))
    if types != [EVERYWHERE if i % every == 0 else NEAR for i in range(len(types))]:
        raise ConfigError(f"layer_types {types} is not supported, only {EVERYWHERE} at blocks 0, n, 2n, ...")
    return every


MODERNBERT = Architecture(
    model_type="modernbert",
    class_name="ModernBertForMaskedLM",
    auto_class="AutoModelForMaskedLM",
    config=BertConfig,
    preset="modernbert",
    needs=_needs,
    names={
        "model.embeddings.tok_embeddings": "embed_tokens",
        "model.embeddings.norm": "embed_norm",
        "model.layers.*.attn_norm": "blocks.*.attention_norm",
        "model.layers.*.attn.Wqkv": (
            "blocks.*.attention.q_proj",
            "blocks.*.attention.k_proj",
            "blocks.*.attention.v_proj",
        ),
        "model.layers.*.attn.Wo": "blocks.*.attention.output_proj",
        "model.layers.*.mlp_norm": "blocks.*.feed_forward_norm",
        "model.layers.*.mlp.Wi": ("blocks.*.feed_forward.gate_proj", "blocks.*.feed_forward.up_proj"),
        "model.layers.*.mlp.Wo": "blocks.*.feed_forward.down_proj",
        "model.final_norm": "final_norm",
        "head.dense": "lm_head.transform",
        "head.norm": "lm_head.norm",
        "decoder": "lm_head",
    },
    prefix="model.",
    settings={
        "max_position_embeddings": "max_positions",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_size",
        "norm_eps": "norm_eps",
    },
    write=_write,
    read=_read,
    fixed={"decoder_bias": (True,)},
    defaults={"tie_word_embeddings": True, "norm_eps": 1e-5},
)
