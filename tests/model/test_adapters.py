"""Adapters inside our models: what they compute against the formulas, and merged against unmerged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import build, generate, init_weights
from model.adapters import Bottlenecked, add_adapter, merge_adapter
from tests.tiny import tiny_config

TOKENS = torch.arange(24).view(2, 12)
FAMILIES = {"gpt": {}, "bert": {"family": "bert"}, "t5": {"family": "t5"}}
LOW_RANK = {"lora": {"rank": 4}, "adalora": {"rank": 6, "target_rank": 4}}


def adapted(family: str, adapter: dict) -> tuple[nn.Module, nn.Module]:
    """A plain model and one with an adapter, with equal base weights; the adapter's are drawn at random."""
    config = tiny_config(model={"num_kv_heads": 4, **FAMILIES[family]}, adapter=adapter)
    plain, model = build(config.model).eval(), build(config.model).eval()
    init_weights(plain, config.model, 3)
    model.load_state_dict(plain.state_dict())
    torch.manual_seed(5)
    add_adapter(model, config)
    assert torch.initial_seed() == 5
    return plain, model


def hidden(model: nn.Module) -> torch.Tensor:
    inputs = (TOKENS, TOKENS) if type(model).__name__ == "T5" else (TOKENS,)
    with torch.no_grad():
        return model(*inputs)


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LOW_RANK)
def test_merged_computes_what_unmerged_does_and_is_a_plain_model(family, name):
    plain, model = adapted(family, {"name": name, **LOW_RANK[name]})
    assert torch.equal(hidden(model), hidden(plain)), "an update starts at zero"
    disturb(model)
    unmerged = hidden(model)
    assert (unmerged - hidden(plain)).abs().max() > 0.01
    merge_adapter(model)
    assert (hidden(model) - unmerged).abs().max() <= 1e-5 * unmerged.abs().max()
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", LOW_RANK)
def test_an_update_is_the_papers_formula(name):
    _, model = adapted("gpt", {"name": name, "alpha": 8, **LOW_RANK[name]})
    disturb(model)
    layer = model.blocks[0].attention.q_proj
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    delta = b.weight @ a.weight * (8 / 4) if name == "lora" else b @ (layer.lora_E["default"] * a) * (8 / 6)
    assert torch.allclose(layer(x), x @ (layer.base_layer.weight + delta).T, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_houlsbys_bottleneck_follows_every_branch_and_starts_near_the_identity(family):
    plain, model = adapted(family, {"name": "houlsby", "bottleneck": 8})
    assert (hidden(model) - hidden(plain)).abs().max() < 0.02 * hidden(plain).abs().max()
    added = {name: module for name, module in model.named_modules() if isinstance(module, Bottlenecked)}
    branches = [name for name, _ in plain.named_modules() if name.endswith(("output_proj", "down_proj"))]
    assert list(added) == branches
    layer = added[branches[0]]
    disturb(layer)
    x = torch.randn(5, layer.base_layer.in_features, generator=torch.Generator().manual_seed(1))
    y, down, up = layer.base_layer(x), layer.adapter.down, layer.adapter.up
    assert torch.allclose(layer(x), y + F.linear(F.gelu(F.linear(y, down.weight, down.bias)), up.weight, up.bias))


def test_generation_goes_through_the_bottlenecks():
    _, model = adapted("gpt", {"name": "houlsby", "bottleneck": 8})
    disturb(model)
    prompt = tokens = TOKENS[:1, :4]
    with torch.no_grad():
        for _ in range(6):
            tokens = torch.cat([tokens, model.lm_head(model(tokens))[:, -1:].argmax(-1)], dim=1)
    made = generate(model, prompt, max_new_tokens=6, temperature=0.0, seed=0)
    assert made.new_tokens[0] == tokens[0, 4:].tolist()


def test_initial_weights_depend_on_the_seed_alone():
    settings = {"name": "lora", "rank": 4}
    (_, one), (_, other) = adapted("gpt", settings), adapted("gpt", settings)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", [*LOW_RANK, "houlsby"])
def test_recomputing_blocks_changes_no_gradient(name, bias):
    """AdaLoRA's layers write over the product of their frozen matrix."""
    adapter = {"name": name, **LOW_RANK.get(name, {"bottleneck": 8})}
    config = tiny_config(model={"num_layers": 1, "bias": bias}, adapter=adapter)
    gradients = []
    for recompute in ("none", "selective"):
        model = build(config.model, activation_checkpointing=recompute).train()
        init_weights(model, config.model, 3)
        add_adapter(model, config)
        disturb(model)
        model(TOKENS, TOKENS.roll(-1, 1)).total.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 4 and all(map(torch.equal, *gradients))
