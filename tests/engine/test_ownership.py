"""Who updates what, for every shipped recipe."""

import re

import pytest
import torch

from config import ConfigError, load_recipe
from config.load import recipe_names
from engine.ownership import ownership
from model import build
from tests.tiny import tiny_config

NOT_ORTHOGONAL = re.compile(r"embed|lm_head|pooler|transform|relative|norm|bias")


@pytest.mark.parametrize("optimizer", ["as shipped", "muon"])
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_parameter_is_owned_once_and_only_hidden_matrices_are_orthogonalised(recipe, optimizer):
    muon = ["optimizer.name=muon", "engine.tensor_parallel=1"]
    config = load_recipe(recipe, [] if optimizer == "as shipped" else muon)
    with torch.device("meta"):
        model = build(config.model, kernel="reference")
    owners = ownership(model, config.optimizer)
    owned = [p for owner in owners for p in owner.parameters.values()]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    assert {id(p) for p in owned} == {id(p) for p in model.parameters()}
    orthogonalised = {n: p for owner in owners if owner.rule == "muon" for n, p in owner.parameters.items()}
    assert bool(orthogonalised) == (config.optimizer.name == "muon")
    for name, parameter in orthogonalised.items():
        assert parameter.ndim == 2 and "blocks." in name and not NOT_ORTHOGONAL.search(name), name
    if config.optimizer.name == "muon":
        matrices = {n for n, p in model.named_parameters() if "blocks." in n and re.search(r"proj\.weight$", n)}
        assert set(orthogonalised) == matrices
    for owner in owners:
        for name, parameter in owner.parameters.items():
            assert (owner.weight_decay > 0) == (parameter.ndim >= 2 and config.optimizer.weight_decay > 0), name


def test_the_table_names_rules_rates_and_patterns():
    optimizer = {
        "name": "muon", "lr": 0.02, "adam_lr": 0.004, "embedding_lr_ratio": 0.5, "decay_embeddings": False, "head_lr_ratio": 2,
    }  # fmt: skip
    config = tiny_config(optimizer=optimizer)
    table = [str(owner) for owner in ownership(build(config.model), config.optimizer)]
    assert table[0] == "adamw lr 0.002 decay 0: 2,048 parameters, embed_tokens.weight"
    assert table[1].startswith("adamw lr 0.004 decay 0: 160 parameters, blocks.*.attention_norm.weight ×2")
    assert table[2].startswith("muon lr 0.02 decay 0.1: ") and "blocks.*.attention.q_proj.weight ×2" in table[2]
    assert table[3] == "adamw lr 0.008 decay 0.1: 2,048 parameters, lm_head.weight"
    assert len(table) == 4


@pytest.mark.parametrize(
    ("name", "setting"),
    [("adamw", "muon_momentum=0.9"), ("sgd", "beta1=0.5"), ("lion", "cautious_decay=true"), ("adamw", "adam_lr=1e-3")],
)
def test_a_setting_without_effect_is_refused(name, setting):
    with pytest.raises(
        ConfigError, match=rf"optimizer\.{setting.partition('=')[0]} .* has no effect on optimizer.name"
    ):
        load_recipe("gpt_debug", [f"optimizer.name={name}", f"optimizer.{setting}"])
