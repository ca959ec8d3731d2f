"""The model as a whole: causality, documents, recomputation, compilation, names and initial weights."""

import pytest
import torch
from torch._dynamo.utils import counters

import model
from config.count import count_parameters
from model.layout import Layout, dense_mask
from model.spec import AttentionSpec
from tests.model.tiny import assert_close, random_tokens, tiny_config, tiny_model

PRESETS = ["gpt2", "llama", "qwen3"]
BOUNDARIES = [0, 5, 24, 25, 40, 72]
"""Documents of three rows of 24 tokens; the fourth crosses the end of the second row."""
DOCUMENTS = [(0, 0, 5), (0, 5, 24), (1, 0, 1), (1, 1, 16), (1, 16, 24), (2, 0, 24)]


def loss_and_gradients(gpt: model.GPT, *args) -> tuple[torch.Tensor, list[torch.Tensor]]:
    gpt.zero_grad()
    total = gpt(*args).total
    total.backward()
    return total.detach(), [p.grad.clone() for p in gpt.parameters()]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_future_token_never_changes_the_past(preset):
    config = tiny_config(preset)
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = gpt(tokens), gpt(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] != after[:, 10:]).any(-1).all(), "every later position sees the change"


@pytest.mark.parametrize("kernel", ["sdpa", "reference"])
@pytest.mark.parametrize("preset", PRESETS)
def test_documents_of_a_row_equal_documents_alone(preset, kernel):
    config = tiny_config(preset)
    gpt = tiny_model(config, kernel=kernel)
    tokens = random_tokens(config)
    layout = Layout.from_cu_seqlens(BOUNDARIES, 3, 24)
    with torch.no_grad():
        packed = gpt(tokens, layout=layout)
        for row, start, end in DOCUMENTS:
            alone = gpt(tokens[row : row + 1, start:end])
            assert_close(packed[row : row + 1, start:end], alone, f"row {row}, tokens {start} to {end}")


def test_layout_describes_the_documents():
    layout = Layout.from_cu_seqlens(torch.tensor([0, 3, 7, 10]), 2, 5)
    assert layout.cu_seqlens.tolist() == [0, 3, 5, 7, 10] and layout.cu_seqlens.dtype == torch.int32
    assert layout.max_seqlen == 3
    assert layout.positions_BT.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert layout.document_ids_BT.tolist() == [[0, 0, 0, 1, 1], [2, 2, 3, 3, 3]]
    assert dense_mask(AttentionSpec(), layout, None, 5, 5, layout.cu_seqlens.device)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1],
    ]  # fmt: skip


@pytest.mark.parametrize("how", ["selective", "full"])
@pytest.mark.parametrize("documents", [False, True])
def test_recomputing_blocks_changes_nothing(documents, how):
    config = tiny_config("qwen3", dropout=0.1)
    tokens = random_tokens(config)
    args = (tokens, tokens.roll(-1, 1), Layout.from_cu_seqlens(BOUNDARIES, 3, 24) if documents else None)

    def trained(recompute: str):
        torch.manual_seed(0)
        return loss_and_gradients(tiny_model(config, activation_checkpointing=recompute).train(), *args)

    total, gradients = trained("none")
    again, recomputed = trained(how)
    assert torch.equal(total, again)
    assert all(map(torch.equal, gradients, recomputed))


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_a_block_compiles_without_graph_breaks_once_for_all(preset, documents):
    torch._dynamo.reset()
    config = tiny_config(preset, num_layers=4)
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    layout = Layout.from_cu_seqlens(BOUNDARIES, 3, 24) if documents else None
    names = list(gpt.state_dict())
    total, gradients = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1), layout)
    model.compile_blocks(gpt, backend="aot_eager", fullgraph=True)
    counters.clear()
    compiled_total, compiled_gradients = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1), layout)
    assert counters["stats"]["unique_graphs"] == 2, "one graph for four blocks, one for the loss"
    assert list(gpt.state_dict()) == names
    assert_close(compiled_total, total, "loss")
    for name, compiled, eager in zip(names, compiled_gradients, gradients, strict=False):
        assert_close(compiled, eager, f"gradient of {name}")


@pytest.mark.slow
def test_inductor_under_autocast_stays_close_to_eager():
    torch._dynamo.reset()
    config = tiny_config("qwen3")
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    total, gradients = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1))
    model.compile_blocks(gpt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled_total, compiled_gradients = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1))
    assert_close(compiled_total, total, "loss", tolerance=1e-2)
    for (name, _), compiled, eager in zip(gpt.named_parameters(), compiled_gradients, gradients, strict=True):
        assert_close(compiled, eager, f"gradient of {name}", tolerance=5e-2)


@pytest.mark.parametrize("preset", PRESETS)
def test_autocast_keeps_the_loss_and_the_gradients_in_float32(preset):
    config = tiny_config(preset)
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    total, _ = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, gradients = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1))
    assert low.dtype == torch.float32 and all(g.dtype == torch.float32 for g in gradients)
    assert_close(low, total, "loss", tolerance=1e-2)


def test_bf16_weights_compute_in_bf16():
    config = tiny_config("qwen3")
    gpt = tiny_model(config)
    tokens = random_tokens(config)
    total, _ = loss_and_gradients(gpt, tokens, tokens.roll(-1, 1))
    low, gradients = loss_and_gradients(gpt.bfloat16(), tokens, tokens.roll(-1, 1))
    assert low.dtype == torch.float32 and all(g.dtype == torch.bfloat16 for g in gradients)
    assert_close(low, total, "loss", tolerance=2e-2)


def test_dropout_acts_in_training_only():
    config = tiny_config("gpt2", dropout=0.5)
    gpt, plain = tiny_model(config), tiny_model(tiny_config("gpt2"))
    tokens = random_tokens(config)
    assert torch.equal(gpt(tokens), plain(tokens))
    gpt.train()
    assert not torch.equal(gpt(tokens), gpt(tokens))


@pytest.mark.parametrize(
    "config",
    [
        *map(tiny_config, PRESETS),
        tiny_config("gpt2", tied_embeddings=False, activation="relu2"),
        tiny_config("gpt2", bias=False),
        tiny_config("llama", bias=True, tied_embeddings=True, head_size=12, ffn_size=40),
        tiny_config("qwen3", num_kv_heads=1, head_size=16),
    ],
)
def test_parameter_count_equals_the_formula(config):
    gpt = model.build(config)
    counted, formula = sum(p.numel() for p in gpt.parameters()), count_parameters(config)
    assert counted == formula.total
    assert sum(p.numel() for p in gpt.blocks[0].parameters()) == formula.largest_block


@pytest.mark.parametrize("preset", PRESETS)
def test_only_block_matrices_are_left_to_muon(preset):
    gpt = model.build(tiny_config(preset))
    muon = {
        name for name, p in gpt.named_parameters() if p.dim() >= 2 and "embed" not in name and "lm_head" not in name
    }
    assert muon == {name for name in gpt.state_dict() if name.startswith("blocks.") and name.endswith("_proj.weight")}


def test_tied_weights_are_one_parameter():
    gpt = model.build(tiny_config("gpt2"))
    assert gpt.lm_head.weight is gpt.embed_tokens.weight
    assert len(list(gpt.parameters())) == len({p.data_ptr() for p in gpt.parameters()}) == len(gpt.state_dict()) - 1


def test_initial_weights_follow_the_table():
    config = tiny_config("gpt2", hidden_size=128, vocab_size=512, num_layers=8, init_std=0.02, tied_embeddings=False)
    gpt = model.build(config)
    model.init_weights(gpt, config, seed=1)
    for name, parameter in gpt.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            std = 0.005 if "output_proj" in name or "down_proj" in name else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < 0.1 * std, name


def test_initial_weights_depend_on_seed_and_name_only():
    def weights(seed: int, **changes) -> dict[str, torch.Tensor]:
        config = tiny_config("qwen3", **changes)
        gpt = model.build(config)
        torch.rand(5)
        model.init_weights(gpt, config, seed)
        return gpt.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    deeper = weights(1, num_layers=3, zero_init_outputs=True)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed_tokens.weight"], other["embed_tokens.weight"])
    assert not torch.equal(first["blocks.0.attention.q_proj.weight"], first["blocks.1.attention.q_proj.weight"])
    assert torch.equal(first["blocks.1.attention.q_proj.weight"], deeper["blocks.1.attention.q_proj.weight"])
    assert not deeper["blocks.1.feed_forward.down_proj.weight"].any()
    assert not deeper["blocks.1.attention.output_proj.weight"].any()
