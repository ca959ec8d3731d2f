"""BERT and ModernBERT compute what transformers computes, through files, in both directions."""

import itertools
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

import model
from model.convert import to_hf_names
from model.hf import architecture
from tests.model.test_parity import perturb
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model

# Without a padding token, whose embedding transformers would not train.
SIZES = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=4, max_position_embeddings=64,
    initializer_range=0.2, pad_token_id=None,
)  # fmt: skip
BERT = dict(SIZES, num_hidden_layers=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
MODERN = dict(SIZES, num_hidden_layers=5, local_attention=8)
ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 500.0}, "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}  # fmt: skip
BIASES = dict(attention_bias=True, mlp_bias=True, norm_bias=True, classifier_bias=True)

THEIRS = {
    "bert": lambda: BertForPreTraining(BertConfig(**BERT)),
    "bert, three types": lambda: BertForPreTraining(BertConfig(**BERT, type_vocab_size=3, hidden_act="gelu_new")),
    "bert without pairs": lambda: BertForMaskedLM(BertConfig(**BERT, hidden_act="relu")),
    "modernbert": lambda: ModernBertForMaskedLM(ModernBertConfig(**MODERN, rope_parameters=ROPE)),
    "modernbert with biases": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**MODERN, **BIASES, global_attn_every_n_layers=2, tie_word_embeddings=False)
    ),
    "modernbert, all global": lambda: ModernBertForMaskedLM(
        ModernBertConfig(**MODERN, layer_types=["full_attention"] * 5)
    ),
}
OURS = {
    "bert": tiny_config("bert"),
    "bert, narrow": tiny_config("bert", ffn_size=40, token_types=4, activation="relu2", norm_eps=1e-5, dropout=0.2),
    "bert without pairs": tiny_config("bert", pooler=False, activation="gelu_tanh"),
    "modernbert": tiny_config("modernbert", num_layers=5, local_window=3),
    "modernbert with biases": tiny_config("modernbert", bias=True, global_every=2, local_window=2, rope_theta=77.0),
    "modernbert untied": tiny_config("modernbert", tied_embeddings=False, local_window=None, activation="swiglu"),
}
LENGTHS = [24, 9, 17]


@pytest.fixture(params=THEIRS)
def pair(request, tmp_path) -> tuple[PreTrainedModel, model.Bert]:
    """Their random model, and ours loaded from the folder it wrote."""
    torch.manual_seed(0)
    theirs = perturb(THEIRS[request.param]())
    theirs.save_pretrained(tmp_path)
    config, state = model.load_hf(tmp_path)
    ours = model.build(config, loss_chunk_tokens=17)
    ours.load_state_dict(state)
    return theirs, ours.eval()


def logits_of(output: Any) -> torch.Tensor:
    return output["prediction_logits"] if "prediction_logits" in output else output["logits"]


def inputs(config: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens, which of them are text, and token types if the model knows them."""
    tokens = random_tokens(config)
    text = torch.arange(24) < torch.tensor(LENGTHS).unsqueeze(1)
    types = torch.randint(max(config.token_types, 1), tokens.shape, generator=torch.Generator().manual_seed(3))
    return tokens, text, {"token_type_ids": types} if config.token_types else {}


def test_losses_and_gradients_of_padded_rows_equal_theirs(pair):
    theirs, ours = pair
    tokens, text, types = inputs(ours.config)
    masked = text & (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.3)
    labels = tokens.masked_fill(~masked, model.IGNORE)
    with_pairs = {"next_sentence_label": torch.tensor([0, 1, 1])} if ours.config.pooler else {}
    output = theirs(tokens, attention_mask=text.long(), labels=labels, **types, **with_pairs)
    output.loss.backward()

    layout = model.Layout.padded(LENGTHS, 24)
    losses = ours(tokens, labels, layout, types.get("token_type_ids"), with_pairs.get("next_sentence_label"))
    assert losses["mlm"].count == masked.sum() and losses.keys() == {"mlm", *(["pairs"] if with_pairs else [])}
    total = sum(loss.total / loss.count for loss in losses.values())
    total.backward()
    hidden = ours(tokens, layout=layout, token_types_BT=types.get("token_type_ids"))
    assert_close(total, output.loss, "loss")
    assert_close(ours.logits(hidden)[text], logits_of(output)[text], "logits")
    if with_pairs:
        assert_close(ours.lm_head.pair_logits(hidden), output.seq_relationship_logits, "logits of pairs")
    gradients = to_hf_names(ours.config, {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False)})
    named = dict(theirs.named_parameters())
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert_close(gradients[name], parameter.grad, f"gradient of {name}")


def test_packed_documents_equal_theirs_one_by_one(pair):
    theirs, ours = pair
    tokens, _, types = inputs(ours.config)
    bounds = [0, 5, 24, 31, 32, 48, 72]
    layout = model.Layout.from_cu_seqlens(bounds, 3, 24)
    with torch.no_grad():
        packed = ours.logits(ours(tokens, layout=layout, token_types_BT=types.get("token_type_ids"))).flatten(0, 1)
        for start, end in itertools.pairwise(bounds):
            alone = {name: x.flatten()[None, start:end] for name, x in {"input_ids": tokens, **types}.items()}
            assert_close(packed[start:end], logits_of(theirs(**alone))[0], f"logits of tokens {start} to {end}")


@pytest.mark.parametrize("name", OURS)
def test_transformers_loads_what_we_save(name, tmp_path):
    config = OURS[name]
    ours = tiny_model(config)
    model.save_hf(tmp_path, config, ours.state_dict(), token_ids={"pad_token_id": 5})
    auto_class = getattr(transformers, architecture(config).auto_class)
    theirs, report = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.pad_token_id == 5
    tokens, text, types = inputs(config)
    with torch.no_grad():
        hidden = ours(tokens, layout=model.Layout.padded(LENGTHS, 24), token_types_BT=types.get("token_type_ids"))
        output = theirs.eval()(tokens, attention_mask=text.long(), **types)
        assert_close(ours.logits(hidden)[text], logits_of(output)[text], "logits")
        base = transformers.AutoModel.from_pretrained(tmp_path).eval()
        assert_close(hidden[text], base(tokens, attention_mask=text.long(), **types)[0][text], "hidden states")
    loaded_config, state = model.load_hf(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(state[name], tensor), name
    unset = {"num_kv_heads", "head_size", "ffn_size", "local_rope_theta", "global_every"}
    assert loaded_config.model_dump(exclude=unset) == config.model_dump(exclude=unset)
