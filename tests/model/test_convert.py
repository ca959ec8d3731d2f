"""Hugging Face folders: old and sharded files, and what cannot be converted."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import model
from config import CheckpointError, ConfigError
from model.hf import architecture, from_hf_config, to_hf_config
from tests.model.tiny import tiny_config, tiny_model


def save_tiny(folder, preset: str, **changes) -> tuple:
    config = tiny_config(preset, **changes)
    state = tiny_model(config).state_dict()
    model.save_hf(folder, config, state)
    return config, state


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same(state, expected) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "preset, changes, message",
    [
        ("llama", dict(activation="relu2"), "model.activation: relu2 has no equivalent .*LlamaForCausalLM.* swiglu"),
        ("llama", dict(logit_softcap=30.0), "model.logit_softcap: 30.0 has no equivalent"),
        ("llama", dict(norm="layernorm"), "model.norm: layernorm has no equivalent"),
        ("llama", dict(hidden_size=30, head_size=8), "model.hidden_size: 30 has no equivalent"),
        ("qwen3", dict(bias=True), "model.bias: True has no equivalent .*Qwen3ForCausalLM"),
        ("gpt2", dict(bias=False), "model.bias: False has no equivalent .*GPT2LMHeadModel"),
        ("gpt2", dict(qk_norm=True), "model.qk_norm: True has no equivalent"),
        ("gpt2", dict(num_kv_heads=2), "model.num_kv_heads: 2 has no equivalent"),
        ("gpt2", dict(sliding_window=8), "model.sliding_window: 8 has no equivalent"),
        ("qwen3", dict(sliding_window=8), "model.sliding_window: 8 has no equivalent"),
        ("llama", dict(attention_softcap=50.0), "model.attention_softcap: 50.0 has no equivalent"),
        ("mistral", dict(bias=True), "model.bias: True has no equivalent .*MistralForCausalLM"),
        ("bert", dict(norm_order="pre"), "model.norm_order: pre has no equivalent .*BertForPreTraining.* post"),
        ("bert", dict(token_types=0), "model.token_types: 0 has no equivalent"),
        ("bert", dict(tied_embeddings=False), "model.tied_embeddings: False has no equivalent"),
        ("bert", dict(pooler=False, bias=False), "model.bias: False has no equivalent .*BertForMaskedLM"),
        ("bert", dict(activation="geglu"), "model.activation: geglu has no equivalent"),
        ("bert", dict(local_window=4, global_every=2), "model.local_window: 4 has no equivalent"),
        ("modernbert", dict(norm_order="post"), "model.norm_order: post has no equivalent .*ModernBertForMaskedLM"),
        ("modernbert", dict(token_types=2), "model.token_types: 2 has no equivalent"),
        ("modernbert", dict(pooler=True), "model.pooler: True has no equivalent"),
        ("modernbert", dict(num_kv_heads=2), "model.num_kv_heads: 2 has no equivalent"),
        ("gpt2", dict(head_size=16), "model.head_size: 16 has no equivalent"),
    ],
)
def test_a_model_without_equivalent_is_refused_by_setting(preset, changes, message):
    with pytest.raises(ConfigError, match=message):
        architecture(tiny_config(preset, **changes))


@pytest.mark.parametrize(
    "preset, changes, message",
    [
        (
            "llama",
            dict(model_type="opt"),
            "model_type 'opt' is not one of gpt2, llama, mistral, qwen3, bert, modernbert, t5",
        ),
        ("llama", dict(hidden_act="gelu"), "hidden_act 'gelu' is not supported, only 'silu'"),
        ("llama", dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1.0}), "type 'llama3' is not supported"),
        ("llama", dict(rope_parameters=None, rope_scaling={"type": "linear"}), "type 'linear' is not supported"),
        ("llama", dict(attention_bias=True), "mlp_bias False is not supported, only True"),
        ("qwen3", dict(use_sliding_window=True), "use_sliding_window True is not supported"),
        ("qwen3", dict(attention_bias=True, mlp_bias=True), "attention_bias True is not supported"),
        ("gpt2", dict(activation_function="tanh"), "activation_function 'tanh' is not supported"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx True is not supported"),
        ("gpt2", dict(attn_pdrop=0.3), "attn_pdrop 0.3 is not supported, only 0.0"),
        ("bert", dict(hidden_act="silu"), "hidden_act 'silu' is not supported"),
        ("bert", dict(is_decoder=True), "is_decoder True is not supported"),
        ("bert", dict(attention_probs_dropout_prob=0.3), "attention_probs_dropout_prob 0.3 is not supported"),
        ("modernbert", dict(mlp_bias=True), "mlp_bias True is not supported, only False"),
        (
            "modernbert",
            dict(classifier_activation="relu"),
            "classifier_activation 'relu' is not supported, only 'gelu'",
        ),
        ("modernbert", dict(decoder_bias=False), "decoder_bias False is not supported"),
        (
            "modernbert",
            dict(layer_types=["full_attention", "sliding_attention", "full_attention", "full_attention"]),
            "layer_types .* is not supported",
        ),
        ("llama", dict(hidden_size="wide"), "hidden_size: Input should be a valid integer"),
    ],
)
def test_a_foreign_model_we_cannot_compute_is_refused(preset, changes, message):
    hf = to_hf_config(tiny_config(preset), dtype="float32") | changes
    with pytest.raises(ConfigError, match=f"somewhere/config.json: .*{message}"):
        from_hf_config(hf, "somewhere/config.json")


@pytest.mark.parametrize(("preset", "theirs"), [("mistral", "MistralConfig"), ("qwen3", "Qwen3Config")])
def test_settings_that_a_file_leaves_out_are_those_of_transformers(preset, theirs):
    hf = to_hf_config(tiny_config(preset), dtype="float32") | {"hidden_size": 64, "num_attention_heads": 32}
    del hf["num_key_value_heads"], hf["head_dim"]
    expected = getattr(transformers, theirs)(**hf)
    read = from_hf_config(hf, "config.json")
    assert read.kv_heads == expected.num_key_value_heads
    assert read.head_width == (expected.head_dim or 2)


def test_a_missing_setting_is_named():
    hf = to_hf_config(tiny_config(), dtype="float32")
    del hf["intermediate_size"]
    with pytest.raises(ConfigError, match=r"config\.json: setting 'intermediate_size' is missing"):
        from_hf_config(hf, "config.json")


def test_a_config_of_transformers_4_is_read(tmp_path):
    save_tiny(tmp_path, "llama", rope_theta=5e5)
    edit_config(tmp_path, rope_parameters=None, rope_scaling=None)
    assert model.load_hf(tmp_path)[0].rope_theta == 5e5


def test_names_and_buffers_of_the_original_gpt2_are_read(tmp_path):
    _, state = save_tiny(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(old, tmp_path / "model.safetensors")
    assert_same(model.load_hf(tmp_path)[1], state)


def test_norms_and_copies_of_the_original_bert_are_read(tmp_path):
    _, state = save_tiny(tmp_path, "bert")
    tensors = load_file(tmp_path / "model.safetensors")
    for ours, theirs in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    tensors["cls.predictions.decoder.weight"] = torch.ones(96, 32)
    tensors["bert.embeddings.position_ids"] = torch.arange(64)
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(model.load_hf(tmp_path)[1], state)


def test_a_modernbert_config_of_the_hub_is_read(tmp_path):
    """As answerdotai/ModernBERT-base writes it: the pattern of its blocks as one number."""
    save_tiny(tmp_path, "modernbert", num_layers=4)
    settings = dict(global_attn_every_n_layers=3, local_attention=128, global_rope_theta=1.6e5, local_rope_theta=1e4)
    edit_config(tmp_path, layer_types=None, rope_parameters=None, **settings)
    config = model.load_hf(tmp_path)[0]
    assert [config.is_local(i) for i in range(4)] == [False, True, True, False]
    assert (config.local_window, config.rope_theta, config.local_rope_theta) == (64, 1.6e5, 1e4)


class Watched:
    """A config that notes which of its settings are asked for."""

    def __init__(self, config):
        self.config, self.asked = config, set()

    def __getattr__(self, name):
        self.asked |= {name, *(setting for setting, value in self.config.LEFT_OUT.items() if value == name)}
        return getattr(self.config, name)


@pytest.mark.parametrize("preset", ["gpt2", "llama", "mistral", "qwen3", "bert", "modernbert"])
def test_no_setting_is_lost_on_the_way(preset):
    """Each is written, or decides whether the model can be exported at all."""
    watched = Watched(tiny_config(preset))
    to_hf_config(watched, dtype="float32")
    if hasattr(watched.config, "is_local"):
        watched.asked |= {"global_every"}
    unimportant = {"preset", "zero_init_outputs"}  # how a model was named and how it started
    elsewhere = {"rope_theta", "local_rope_theta"} if watched.config.position == "learned" else set()
    if preset in ("llama", "mistral", "qwen3"):
        unimportant.add("dropout")  # theirs have it on attention alone
    assert set(type(watched.config).model_fields) - watched.asked == unimportant | (
        elsewhere & set(type(watched.config).model_fields)
    )


def test_sharded_files_are_read(tmp_path):
    _, state = save_tiny(tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    shards = {"model-1.safetensors": sorted(tensors)[:5], "model-2.safetensors": sorted(tensors)[5:]}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, tmp_path / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(model.load_hf(tmp_path)[1], state)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        model.load_hf(tmp_path)


def test_bf16_stays_bf16(tmp_path):
    config = tiny_config("gpt2")
    state = tiny_model(config).bfloat16().state_dict()
    model.save_hf(tmp_path, config, state)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = model.load_hf(tmp_path)[1]
    assert_same(loaded, state)
    assert all(tensor.dtype == torch.bfloat16 for tensor in loaded.values())


def test_weights_that_do_not_fit_the_config_are_named(tmp_path):
    save_tiny(tmp_path, "qwen3")
    edit_config(tmp_path, intermediate_size=100)
    with pytest.raises(CheckpointError, match=r"down_proj.weight is \(32, 128\), the config asks for \(32, 100\)"):
        model.load_hf(tmp_path)
    edit_config(tmp_path, intermediate_size=128, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"blocks.2.attention.k_norm.weight is missing"):
        model.load_hf(tmp_path)
    edit_config(tmp_path, num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"blocks.1.* the config asks for none"):
        model.load_hf(tmp_path)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        model.load_hf(tmp_path)
    save_tiny(tmp_path, "gpt2")
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged \(.*\); copy the file again"):
        model.load_hf(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing; only safetensors files are read"):
        model.load_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type":')
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON \(.*\); copy the file again"):
        model.load_hf(tmp_path)
