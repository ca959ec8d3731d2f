"""T5 version 1.1 (gated) and 1.0 (ReLU, tied).

They keep each stack's table of relative positions in its first block. Only the size of the outputs of version 1.0 tells
whether a head shares the embedding: transformers 5 calls every one tied, and unties those that differ in the file.
"""

import re
from dataclasses import replace
from typing import Any

from config import T5Config
from model.hf.architecture import Architecture, require

ACTIVATIONS = {
    "gated-gelu": "geglu_tanh", "gated-silu": "swiglu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "relu2": "relu2",
}  # fmt: skip
"""Theirs, the `feed_forward_proj`, and ours."""

BRANCHES = {
    "encoder": {"attention": "0.SelfAttention", "feed_forward": "1.DenseReluDense"},
    "decoder": {"attention": "0.SelfAttention", "cross_attention": "1.EncDecAttention", "feed_forward": "2.DenseReluDense"},
}  # fmt: skip
ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "output_proj"}


def _names(feed_forward: dict[str, str]) -> dict[str, str | tuple[str, ...]]:
    names: dict[str, str | tuple[str, ...]] = {"shared": "embed_tokens", "lm_head": "lm_head"}
    for stack, branches in BRANCHES.items():
        names[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"] = f"{stack}.relative_embed"
        names[f"{stack}.final_layer_norm"] = f"{stack}.final_norm"
        for ours, theirs in branches.items():
            layer = f"{stack}.block.*.layer.{theirs[0]}"
            names[f"{layer}.layer_norm"] = f"{stack}.blocks.*.{ours}_norm"
            for their_leaf, our_leaf in (feed_forward if ours == "feed_forward" else ATTENTION).items():
                names[f"{stack}.block.*.layer.{theirs}.{their_leaf}"] = f"{stack}.blocks.*.{ours}.{our_leaf}"
    return names


def _needs(config: T5Config) -> dict[str, tuple[Any, ...]]:
    return dict(
        norm=("rmsnorm",), activation=tuple(ACTIVATIONS.values()), bias=(False,), qk_norm=(False,), logit_softcap=(None,),
        attention_softcap=(None,), num_kv_heads=(config.num_heads,),
    )  # fmt: skip


def _write(config: T5Config) -> dict[str, Any]:
    theirs = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    return {"feed_forward_proj": theirs[config.activation], "initializer_factor": config.init_std}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        "activation": ACTIVATIONS[
            require({"feed_forward_proj": "relu", **hf}, "feed_forward_proj", tuple(ACTIVATIONS))
        ],
        "tied_embeddings": hf.get("scale_decoder_outputs", hf.get("tie_word_embeddings", True)),
        "init_std": float(hf.get("initializer_factor", 1.0)),
    }


T5 = Architecture(
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    auto_class="AutoModelForSeq2SeqLM",
    config=T5Config,
    preset="t5_v1_1",
    needs=_needs,
    names=_names({"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}),
    prefix="",
    settings={
        "n_positions": "max_positions",
        "d_model": "hidden_size",
        "d_kv": "head_size",
        "d_ff": "ffn_size",
        "num_layers": "num_layers",
        "num_decoder_layers": "num_decoder_layers",
        "num_heads": "num_heads",
        "relative_attention_num_buckets": "relative_buckets",
        "relative_attention_max_distance": "relative_max_distance",
        "dropout_rate": "dropout",
        "layer_norm_epsilon": "norm_eps",
    },
    write=_write,
    read=_read,
    fixed={"is_encoder_decoder": (True,)},
    defaults={
        "n_positions": 512, "d_kv": 64, "num_decoder_layers": None, "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6,
        "tie_word_embeddings": True,
    },
    ignored=re.compile(r"^(en|de)coder\.embed_tokens\.|\.EncDecAttention\.relative_attention_bias\."),
)  # fmt: skip

T5_UNGATED = replace(T5, names=_names({"wi": "up_proj", "wo": "down_proj"}))
