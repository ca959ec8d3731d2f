"""GPT-2, Llama, Mistral and Qwen3 compute what transformers computes, through files, in both directions."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import model
from model.convert import to_hf_names
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model

SIZES = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
)  # fmt: skip
GPT2_SIZES = dict(
    vocab_size=96, n_embd=32, n_inner=48, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 500.0}

THEIRS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
    "gpt2 untied, exact gelu": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2_SIZES, activation_function="gelu", tie_word_embeddings=False)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=ROPE)),
    "llama tied with biases": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "mistral without window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, rope_parameters=ROPE)),
    "qwen3 tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
}
OURS = {
    "gpt2": tiny_config("gpt2"),
    "gpt2 squared relu": tiny_config("gpt2", activation="relu2", ffn_size=40, tied_embeddings=False),
    "llama": tiny_config("llama", rope_theta=777.0, norm_eps=1e-4),
    "llama tied with biases": tiny_config("llama", bias=True, tied_embeddings=True, head_size=12),
    "mistral": tiny_config("mistral", sliding_window=7, head_size=12),
    "qwen3": tiny_config("qwen3", head_size=16),
}


def perturb(theirs: PreTrainedModel) -> PreTrainedModel:
    """Move norms and biases away from 1 and 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter += torch.empty_like(parameter).uniform_(-0.3, 0.3)
    return theirs.eval()


@pytest.fixture(params=THEIRS)
def pair(request, tmp_path) -> tuple[PreTrainedModel, model.GPT]:
    """Their random model, and ours loaded from the folder it wrote."""
    torch.manual_seed(0)
    theirs = perturb(THEIRS[request.param]())
    theirs.save_pretrained(tmp_path)
    config, state = model.load_hf(tmp_path)
    ours = model.build(config, loss_chunk_tokens=17)
    ours.load_state_dict(state)
    return theirs, ours.eval()


def test_logits_loss_and_gradients_equal_theirs(pair):
    theirs, ours = pair
    tokens = random_tokens(ours.config)
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = model.IGNORE
    labels[0, :5] = model.IGNORE
    output = theirs(tokens, labels=tokens, shift_labels=labels)
    output.loss.backward()
    loss = ours(tokens, labels)
    (loss.total / loss.count).backward()

    assert_close(ours.logits(ours(tokens)), output.logits, "logits")
    assert_close(loss.total / loss.count, output.loss, "loss")
    gradients = to_hf_names(ours.config, {name: p.grad for name, p in ours.named_parameters(remove_duplicate=False)})
    named = dict(theirs.named_parameters())
    assert gradients.keys() == named.keys()
    for name, parameter in named.items():
        assert_close(gradients[name], parameter.grad, f"gradient of {name}")


def test_greedy_generation_equals_theirs(pair):
    theirs, ours = pair
    prompts = random_tokens(ours.config, rows=2, length=7)
    expected = theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    generation = model.generate(ours, prompts, max_new_tokens=20, temperature=0)
    assert generation.new_tokens == expected[:, 7:].tolist()


@pytest.mark.parametrize("name", OURS)
def test_transformers_loads_what_we_save(name, tmp_path):
    config = OURS[name]
    ours = tiny_model(config)
    model.save_hf(tmp_path, config, ours.state_dict(), token_ids={"eos_token_id": 3})
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.eos_token_id == 3
    tokens = random_tokens(config)
    with torch.no_grad():
        assert_close(ours.logits(ours(tokens)), theirs.eval()(tokens).logits, "logits")
    loaded_config, state = model.load_hf(tmp_path)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert loaded_config.model_dump(exclude={"preset", "num_kv_heads", "head_size", "ffn_size"}) == config.model_dump(
        exclude={"preset", "num_kv_heads", "head_size", "ffn_size"}
    )
