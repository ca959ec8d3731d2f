"""T5 computes what transformers computes, through files, in both directions."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration
from transformers import T5Config as TheirConfig

import model
from config import ConfigError
from model.convert import to_hf_names
from model.hf import architecture, from_hf_config, to_hf_config
from model.layout import Layout
from tests.model.tiny import assert_close, random_tokens, tiny_model, tiny_t5

OURS = {
    "t5 1.1": tiny_t5(),
    "t5 1.1, gated silu, wide heads": tiny_t5(activation="swiglu", head_size=12, norm_eps=1e-4),
    "t5 1.0": tiny_t5(activation="relu", tied_embeddings=True, init_std=0.7, num_decoder_layers=2),
    "t5 1.0 untied": tiny_t5(activation="relu"),
    "t5 1.1 tied": tiny_t5(tied_embeddings=True, num_layers=1),
}
LENGTHS = [20, 7, 1]


@pytest.fixture(params=OURS)
def pair(request, tmp_path) -> tuple[T5ForConditionalGeneration, model.T5]:
    """Theirs loaded from the folder that we wrote, and ours from the folder that it wrote in turn."""
    config = OURS[request.param]
    first = tiny_model(config)
    model.save_hf(tmp_path / "ours", config, first.state_dict(), token_ids={"pad_token_id": 0, "eos_token_id": 3})
    theirs, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.eos_token_id == 3
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, state = model.load_hf(tmp_path / "theirs")
    assert all(torch.equal(state[name], tensor) for name, tensor in first.state_dict().items())
    dump = {"num_kv_heads", "head_size", "ffn_size", "num_decoder_layers"}
    assert loaded.model_dump(exclude=dump) == config.model_dump(exclude=dump)
    ours = model.build(loaded, loss_chunk_tokens=17)
    ours.load_state_dict(state)
    return theirs.eval(), ours.eval()


@pytest.mark.parametrize("padded", [False, True])
def test_logits_loss_and_gradients_equal_theirs(pair, padded):
    theirs, ours = pair
    source, target = random_tokens(ours.config, length=20), random_tokens(ours.config, length=13, seed=1)
    tokens, labels = target[:, :-1], target[:, 1:].contiguous()
    labels[0, :5] = model.IGNORE
    mask = torch.arange(20) < torch.tensor(LENGTHS)[:, None] if padded else None
    output = theirs(source, attention_mask=mask, decoder_input_ids=tokens, labels=labels)
    output.loss.backward()
    layout = Layout.padded(LENGTHS, 20) if padded else None
    loss = ours(source, tokens, labels, source_layout=layout)
    (loss.total / loss.count).backward()

    assert_close(ours.logits(ours(source, tokens, source_layout=layout)), output.logits, "logits")
    assert_close(loss.total / loss.count, output.loss, "loss")
    gradients = to_hf_names(ours.config, {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False)})
    named = dict(theirs.named_parameters())
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert_close(gradients[name], parameter.grad, f"gradient of {name}")


@pytest.mark.parametrize("padded", [False, True])
def test_greedy_generation_equals_theirs(pair, padded):
    theirs, ours = pair
    source = random_tokens(ours.config, length=20)
    mask = torch.arange(20) < torch.tensor(LENGTHS if padded else [20] * 3)[:, None]
    expected = theirs.generate(
        source,
        attention_mask=mask.long(),
        decoder_start_token_id=0,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        # Their cache has as many layers as the encoder.
        use_cache=ours.config.num_layers == ours.config.decoder_layers,
    )
    generation = model.generate(
        ours,
        [[0]] * 3,
        sources=[row[:length] for row, length in zip(source.tolist(), LENGTHS if padded else [20] * 3, strict=True)],
        max_new_tokens=20,
        temperature=0,
    )
    assert generation.new_tokens == expected[:, 1:].tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm="layernorm"), "model.norm: layernorm has no equivalent .*T5ForConditionalGeneration"),
        (dict(activation="geglu"), "model.activation: geglu has no equivalent"),
        (dict(num_kv_heads=2), "model.num_kv_heads: 2 has no equivalent"),
        (dict(logit_softcap=30.0), "model.logit_softcap: 30.0 has no equivalent"),
        (dict(qk_norm=True), "model.qk_norm: True has no equivalent"),
    ],
)
def test_a_model_without_equivalent_is_refused_by_setting(changes, message):
    with pytest.raises(ConfigError, match=message):
        architecture(tiny_t5(**changes))


def test_published_configs_are_read():
    """The settings of t5-small and of google/t5-v1_1-base as they lie on the hub."""
    old = dict(
        model_type="t5", architectures=["T5WithLMHeadModel"], vocab_size=32128, d_model=512, d_kv=64, d_ff=2048,
        num_layers=6, num_heads=8, n_positions=512, relative_attention_num_buckets=32, dropout_rate=0.1,
        layer_norm_epsilon=1e-6, initializer_factor=1.0, is_encoder_decoder=True,
    )  # fmt: skip
    small = from_hf_config(old, "config.json")
    assert (small.activation, small.tied_embeddings, small.max_positions) == ("relu", True, 512)
    new = old | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_decoder_layers=12, num_layers=12)
    base = from_hf_config(new, "config.json")
    assert (base.activation, base.tied_embeddings, base.decoder_layers) == ("geglu_tanh", False, 12)
    theirs = TheirConfig(**to_hf_config(base, dtype="float32"))
    assert theirs.is_gated_act and theirs.dense_act_fn == "gelu_new" and not theirs.scale_decoder_outputs


def test_an_activation_we_lack_is_refused():
    hf = to_hf_config(tiny_t5(), dtype="float32") | {"feed_forward_proj": "gated-tanh"}
    with pytest.raises(ConfigError, match=r"config\.json: feed_forward_proj 'gated-tanh' is not supported"):
        from_hf_config(hf, "config.json")
