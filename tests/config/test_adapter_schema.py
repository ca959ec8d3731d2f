"""Adapters' settings: parameters by closed form, and what is refused."""

from typing import Any

import pytest
import torch

from config import BertConfig, ConfigError, GPTConfig, RunConfig, T5Config, compare
from config.adapter_schema import adapter_parameters
from model import build
from model.adapters import add_adapter
from tests.tiny import tiny_config

TINY: dict[str, Any] = {"vocab_size": 96, "num_layers": 3, "hidden_size": 32, "num_heads": 4, "max_positions": 16}
MODELS = [
    GPTConfig(**TINY, preset="gpt2"),
    GPTConfig(**TINY, preset="qwen3", num_kv_heads=2, head_size=16, ffn_size=40, tied_embeddings=True),
    BertConfig(**TINY, preset="bert", pooler=False),
    T5Config(**TINY, preset="t5_v1_1", num_decoder_layers=2, num_kv_heads=2),
]
ADAPTERS: list[dict[str, Any]] = [
    {"name": "lora", "rank": 4},
    {"name": "lora", "rank": 2, "targets": ["q_proj", "down_proj"]},
    {"name": "adalora", "rank": 4, "target_rank": 2},
    {"name": "houlsby", "bottleneck": 8},
]


@pytest.mark.parametrize("settings", ADAPTERS, ids=lambda a: "-".join(map(str, a.values())))
@pytest.mark.parametrize("config", MODELS, ids=lambda c: f"{c.family}-{c.preset}")
def test_parameters_equal_those_trained(config, settings):
    recipe = tiny_config(model=config.model_dump(), adapter=settings)
    model = build(config)
    add_adapter(model, recipe)
    assert adapter_parameters(recipe.adapter, config) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "sections, words",
    [
        (
            {"adapter": {"name": "lora"}, "optimizer": {"name": "muon"}},
            "adapter.name lora does not work with optimizer.name",
        ),
        ({"adapter": {"name": "lora"}, "engine": {"tensor_parallel": 2}}, "engine.tensor_parallel 2"),
        ({"adapter": {"name": "lora"}, "optimizer": {"decay_embeddings": False}}, "decay_embeddings has no effect"),
        ({"adapter": {"name": "lora"}, "optimizer": {"head_lr_ratio": 2}}, "head_lr_ratio has no effect .* the head"),
        ({"adapter": {"name": "lora", "rank": 20}}, "adapter.rank 20 is more than the 16 of k_proj"),
        ({"adapter": {"name": "lora", "targets": ["gate_proj"]}, "model": {"preset": "gpt2"}}, "gate_proj"),
        ({"adapter": {"name": "lora", "targets": ["q_proj", "q_proj"]}}, "name a matrix twice: name each once"),
        ({"adapter": {"name": "adalora", "rank": 4, "target_rank": 4}}, "target_rank 4 is not below adapter.rank 4"),
        ({"adapter": {"name": "adalora", "rank": 4, "target_rank": 2, "final_steps": 8}}, "schedule.steps 8"),
    ],
)
def test_what_cannot_work_is_refused(sections, words):
    with pytest.raises(ValueError, match=words):
        tiny_config(**sections)


def test_what_may_change_between_runs():
    def kinds(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
        return {d.setting: d.kind for d in compare(tiny_config(**one), tiny_config(**other))}

    lora, constant = {"name": "lora"}, {"name": "constant"}
    assert kinds({"adapter": lora}, {"adapter": {**lora, "rank": 4}}) == {"adapter.rank": "refused"}
    assert kinds({"adapter": lora}, {"adapter": {**lora, "dropout": 0.1}}) == {"adapter.dropout": "needs_consent"}
    ada = {"name": "adalora", "rank": 4, "target_rank": 2}
    longer = kinds({"adapter": ada, "schedule": constant}, {"adapter": ada, "schedule": {**constant, "steps": 9}})
    assert longer == {"schedule.steps": "needs_consent"}
    assert "refused" in kinds({}, {"adapter": lora}).values()


def test_no_adapter_is_the_default():
    config = tiny_config()
    assert isinstance(config, RunConfig) and config.adapter.name == "none"
    model = build(config.model)
    assert add_adapter(model, config) is None
    assert all(p.requires_grad for p in model.parameters()) and torch.is_tensor(next(model.parameters()))


def test_peft_missing_is_one_message(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    config = tiny_config(adapter={"name": "lora"})
    with pytest.raises(ConfigError, match=r"pip install -e '.\[finetune\]'"):
        add_adapter(build(config.model), config)
