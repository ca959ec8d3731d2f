"""GPT-2. Linear weights are transposed (their Conv1D), and query, key and value are one matrix."""

import re
from typing import Any

from config import GPTConfig
from model.hf.architecture import ACTIVATIONS, Architecture, plain_heads, require, require_equal, their_activation

DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def _needs(config: GPTConfig) -> dict[str, tuple[Any, ...]]:
    return dict(
        position=("learned",), norm=("layernorm",), activation=tuple(dict.fromkeys(ACTIVATIONS.values())), bias=(True,),
        qk_norm=(False,), logit_softcap=(None,), attention_softcap=(None,), sliding_window=(None,),
        **plain_heads(config),
    )  # fmt: skip


def _write(config: GPTConfig) -> dict[str, Any]:
    return {
        "activation_function": their_activation(config.activation),
        **dict.fromkeys(DROPOUTS, config.dropout),
    }


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        "activation": ACTIVATIONS[require(hf, "activation_function", tuple(ACTIVATIONS))],
        "dropout": require_equal(hf, DROPOUTS, 0.1),
    }


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    auto_class="AutoModelForCausalLM",
    config=GPTConfig,
    preset="gpt2",
    needs=_needs,
    names={
        "transformer.wte": "embed_tokens",
        "transformer.wpe": "embed_positions",
        "transformer.h.*.ln_1": "blocks.*.attention_norm",
        "transformer.h.*.attn.c_attn": (
            "blocks.*.attention.q_proj",
            "blocks.*.attention.k_proj",
            "blocks.*.attention.v_proj",
        ),
        "transformer.h.*.attn.c_proj": "blocks.*.attention.output_proj",
        "transformer.h.*.ln_2": "blocks.*.feed_forward_norm",
        "transformer.h.*.mlp.c_fc": "blocks.*.feed_forward.up_proj",
        "transformer.h.*.mlp.c_proj": "blocks.*.feed_forward.down_proj",
        "transformer.ln_f": "final_norm",
        "lm_head": "lm_head",
    },
    prefix="transformer.",
    settings={
        "n_positions": "max_positions",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_inner": "ffn_size",
        "layer_norm_epsilon": "norm_eps",
    },
    write=_write,
    read=_read,
    fixed={
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    defaults={"tie_word_embeddings": True, "n_inner": None, "layer_norm_epsilon": 1e-5},
    transposed=re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$"),
    ignored=re.compile(r"\.attn\.(masked_)?bias$"),
)
