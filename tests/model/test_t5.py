"""The encoder–decoder as a whole: who sees what, distances, recomputation, compilation, names and initial weights."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers.models.t5.modeling_t5 import T5Attention

import model
from config import ConfigError, T5Config
from model.cache import KVCache
from model.layout import Layout
from model.relative import RelativeBias, relative_bucket
from tests.model.tiny import assert_close, random_tokens, tiny_model, tiny_t5

LENGTHS = [20, 7, 1]
"""Tokens of the texts in three padded rows of 20."""


def random_pair(
    config: T5Config, source: int = 20, target: int = 12
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Source [3, S], the decoder's tokens and labels [3, T]."""
    target_tokens = random_tokens(config, length=target + 1, seed=1)
    return random_tokens(config, length=source), target_tokens[:, :-1], target_tokens[:, 1:].contiguous()


def loss_and_gradients(t5: model.T5, *args) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    t5.zero_grad()
    total = t5(*args).total
    total.backward()
    return total.detach(), {name: p.grad.clone() for name, p in t5.named_parameters()}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 16), (16, 1000)])
def test_buckets_are_those_of_transformers(buckets, longest, causal):
    distance = torch.arange(-1500, 1500)
    theirs = T5Attention._relative_position_bucket(distance, not causal, buckets, longest)
    assert torch.equal(relative_bucket(distance, buckets, longest, causal=causal), theirs)


def test_bias_of_the_newest_queries_is_the_end_of_the_whole():
    bias = RelativeBias(8, 4, max_distance=16, causal=True)
    whole = bias(30, 30)
    assert whole.shape == (4, 30, 30) and whole.dtype == torch.float32
    assert torch.equal(bias(2, 30), whole[:, 28:])
    assert torch.equal(bias.bfloat16()(30, 30), whole.bfloat16().float())


def test_the_decoder_sees_its_past_and_the_whole_source():
    config = tiny_t5()
    t5 = tiny_model(config)
    source, tokens, _ = random_pair(config)
    other = tokens.clone()
    other[:, 5] = (other[:, 5] + 1) % config.vocab_size
    last = source.clone()
    last[:, -1] = (last[:, -1] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = t5(source, tokens), t5(source, other)
        assert torch.equal(before[:, :5], after[:, :5])
        assert (before[:, 5:] != after[:, 5:]).any(-1).all()
        assert (before != t5(last, tokens)).any(-1).all(), "the first target token sees the last of the source"
        assert (t5.encode(source) != t5.encode(last)).any(-1).all(), "so does the first of the source"


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
def test_padding_is_never_seen(kernel):
    """Rows padded on both sides equal the texts alone, in hidden states, loss and gradients."""
    config = tiny_t5()
    t5 = tiny_model(config, kernel=kernel)
    source, tokens, labels = random_pair(config)
    targets = [12, 3, 8]
    for row, length in enumerate(targets):
        labels[row, length:] = model.IGNORE
    layouts = Layout.padded(LENGTHS, 20), Layout.padded(targets, 12)
    padded, gradients = loss_and_gradients(t5, source, tokens, labels, *layouts)
    hidden = t5(source, tokens, None, *layouts)
    t5.zero_grad()
    alone = []
    for row, (s, t) in enumerate(zip(LENGTHS, targets, strict=True)):
        pair = source[row : row + 1, :s], tokens[row : row + 1, :t]
        assert_close(hidden[row : row + 1, :t], t5(*pair), f"hidden states of row {row}")
        alone.append(t5(*pair, labels[row : row + 1, :t]).total)
    total = torch.stack(alone).sum()
    total.backward()
    assert_close(padded, total, "loss")
    for name, parameter in t5.named_parameters():
        assert_close(gradients[name], parameter.grad, f"gradient of {name}")


@pytest.mark.parametrize("padded", [False, True])
def test_logits_with_cache_equal_logits_without(padded):
    config = tiny_t5()
    t5 = tiny_model(config)
    source, tokens, _ = random_pair(config)
    layout = Layout.padded(LENGTHS, 20) if padded else None
    cache = KVCache(config.decoder_layers, source=True)
    with torch.no_grad():
        expected = t5.logits(t5(source, tokens, source_layout=layout))
        steps = [t5(source, tokens[:, :4], source_layout=layout, cache=cache)]
        steps += [t5(None, tokens[:, i : i + 1], source_layout=layout, cache=cache) for i in range(4, 12)]
        assert_close(t5.logits(torch.cat(steps, dim=1)), expected, "logits")


@pytest.mark.parametrize("padded", [False, True])
def test_recomputing_blocks_changes_nothing(padded):
    config = tiny_t5()
    layout = Layout.padded(LENGTHS, 20) if padded else None
    total, gradients = loss_and_gradients(tiny_model(config), *random_pair(config), layout)
    again, recomputed = loss_and_gradients(
        tiny_model(config, activation_checkpointing="full"), *random_pair(config), layout
    )
    assert torch.equal(total, again)
    assert all(torch.equal(gradients[name], recomputed[name]) for name in gradients)


@pytest.mark.parametrize("padded", [False, True])
def test_blocks_compile_without_graph_breaks_once_for_all_of_a_stack(padded):
    torch._dynamo.reset()
    config = tiny_t5(num_layers=3, num_decoder_layers=4)
    t5 = tiny_model(config)
    args = *random_pair(config), Layout.padded(LENGTHS, 20) if padded else None
    names = list(t5.state_dict())
    total, gradients = loss_and_gradients(t5, *args)
    model.compile_blocks(t5, backend="aot_eager", fullgraph=True)
    counters.clear()
    compiled_total, compiled_gradients = loss_and_gradients(t5, *args)
    assert counters["stats"]["unique_graphs"] == 3, (
        "one for the encoder's blocks, one for the decoder's, one for the loss"
    )
    assert list(t5.state_dict()) == names
    assert_close(compiled_total, total, "loss")
    for name, gradient in gradients.items():
        assert_close(compiled_gradients[name], gradient, f"gradient of {name}")


def test_autocast_keeps_the_loss_and_the_gradients_in_float32():
    config = tiny_t5()
    t5 = tiny_model(config)
    total, _ = loss_and_gradients(t5, *random_pair(config))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, gradients = loss_and_gradients(t5, *random_pair(config))
    assert low.dtype == torch.float32 and all(g.dtype == torch.float32 for g in gradients.values())
    assert_close(low, total, "loss", tolerance=1e-2)


def test_dropout_acts_in_training_only():
    config = tiny_t5(dropout=0.5)
    t5 = tiny_model(config)
    source, tokens, _ = random_pair(config)
    assert torch.equal(t5(source, tokens), tiny_model(tiny_t5())(source, tokens))
    t5.train()
    assert not torch.equal(t5(source, tokens), t5(source, tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_only_block_matrices_are_left_to_muon(tied):
    t5 = model.build(tiny_t5(tied_embeddings=tied))
    muon = {name for name, p in t5.named_parameters() if p.dim() >= 2 and "embed" not in name and "lm_head" not in name}
    assert muon == {name for name in t5.state_dict() if ".blocks." in name and name.endswith("_proj.weight")}
    assert ("lm_head.weight" in dict(t5.named_parameters())) is not tied


def test_initial_weights_have_the_spreads_of_the_table():
    config = T5Config(vocab_size=512, num_layers=4, hidden_size=128, num_heads=4, head_size=64, ffn_size=512)
    t5 = model.build(config)
    model.init_weights(t5, config, seed=1)
    spreads = {
        "embed_tokens": 1, "lm_head": 128**-0.5, "relative_embed": 128**-0.5, "q_proj": (128 * 64) ** -0.5,
        "k_proj": 128**-0.5, "v_proj": 128**-0.5, "gate_proj": 128**-0.5, "up_proj": 128**-0.5,
        "output_proj": 256**-0.5, "down_proj": 512**-0.5,
    }  # fmt: skip
    for name, parameter in t5.named_parameters():
        kind = name.split(".")[-2]
        if kind.endswith("norm"):
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(spreads[kind], rel=0.2 if "relative" in kind else 0.05), name


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_loss_is_near_that_of_a_uniform_guess(tied):
    config = T5Config(vocab_size=512, num_layers=2, hidden_size=128, num_heads=4, tied_embeddings=tied)
    t5 = model.build(config)
    model.init_weights(t5, config, seed=1)
    with torch.no_grad():
        loss = t5(*random_pair(config))
    assert loss.total / loss.count < torch.log(torch.tensor(512.0)) + 2


@pytest.mark.parametrize("name", ["varlen", "flash"])
def test_a_kernel_without_bias_is_refused(name):
    with pytest.raises(ConfigError, match=f"engine.kernel: {name} cannot be used here"):
        model.build(tiny_t5(), kernel=name)
