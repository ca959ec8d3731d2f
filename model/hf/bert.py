"""Classic BERT, with the head for pairs of texts (BertForPreTraining) or without (BertForMaskedLM)."""

import re
from dataclasses import replace
from typing import Any

from config import BertConfig
from model.hf.architecture import ACTIVATIONS, Architecture, plain_heads, require, require_equal, their_activation

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def _needs(config: BertConfig) -> dict[str, tuple[Any, ...]]:
    return dict(
        position=("learned",), norm_order=("post",), norm=("layernorm",), bias=(True,), qk_norm=(False,),
        activation=tuple(dict.fromkeys(ACTIVATIONS.values())), logit_softcap=(None,), attention_softcap=(None,),
        local_window=(None,), token_types=(config.token_types or 1,), tied_embeddings=(True,),
        **plain_heads(config),
    )  # fmt: skip


def _write(config: BertConfig) -> dict[str, Any]:
    return {"hidden_act": their_activation(config.activation), **dict.fromkeys(DROPOUTS, config.dropout)}


def _read(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        "activation": ACTIVATIONS[require(hf, "hidden_act", ("gelu", *ACTIVATIONS))],
        "dropout": require_equal(hf, DROPOUTS, 0.1),
    }


BERT = Architecture(
    model_type="bert",
    class_name="BertForPreTraining",
    auto_class="AutoModelForPreTraining",
    config=BertConfig,
    preset="bert",
    needs=_needs,
    names={
        "bert.embeddings.word_embeddings": "embed_tokens",
        "bert.embeddings.position_embeddings": "embed_positions",
        "bert.embeddings.token_type_embeddings": "embed_token_types",
        "bert.embeddings.LayerNorm": "embed_norm",
        "bert.encoder.layer.*.attention.self.query": "blocks.*.attention.q_proj",
        "bert.encoder.layer.*.attention.self.key": "blocks.*.attention.k_proj",
        "bert.encoder.layer.*.attention.self.value": "blocks.*.attention.v_proj",
        "bert.encoder.layer.*.attention.output.dense": "blocks.*.attention.output_proj",
        "bert.encoder.layer.*.attention.output.LayerNorm": "blocks.*.attention_norm",
        "bert.encoder.layer.*.intermediate.dense": "blocks.*.feed_forward.up_proj",
        "bert.encoder.layer.*.output.dense": "blocks.*.feed_forward.down_proj",
        "bert.encoder.layer.*.output.LayerNorm": "blocks.*.feed_forward_norm",
        "cls.predictions.transform.dense": "lm_head.transform",
        "cls.predictions.transform.LayerNorm": "lm_head.norm",
        "cls.predictions.bias": "lm_head.bias",
        "bert.pooler.dense": "lm_head.pooler",
        "cls.seq_relationship": "lm_head.pairs",
    },
    prefix="bert.",
    settings={
        "max_position_embeddings": "max_positions",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_size",
        "type_vocab_size": "token_types",
        "layer_norm_eps": "norm_eps",
    },
    write=_write,
    read=lambda hf: {**_read(hf), "pooler": True},
    fixed={"is_decoder": (False,), "add_cross_attention": (False,)},
    defaults={"tie_word_embeddings": True, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    ignored=re.compile(r"\.position_ids$|^cls\.predictions\.decoder\."),
)

BERT_MASKED_LM = replace(
    BERT,
    class_name="BertForMaskedLM",
    auto_class="AutoModelForMaskedLM",
    read=lambda hf: {**_read(hf), "pooler": False},
)
