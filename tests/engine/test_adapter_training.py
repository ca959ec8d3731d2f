"""Adapters through DeepSpeed: one curve at every stage and number of ranks, frozen weights untouched, exact resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.ownership import ownership
from engine.reference import Reference
from engine.state import read_weights
from model import initial_weight
from model.adapters import add_adapter
from tests.ranks import run_ranks
from tests.tiny import VOCAB, rank_batches, tiny_config
from tests.workers.adapters import resume_elsewhere, train_and_resume
from tests.workers.steps import train_all

pytestmark = pytest.mark.slow
STEPS = 8
ADAPTERS: list[dict[str, Any]] = [
    {"name": "lora", "rank": 4},
    {"name": "adalora", "rank": 6, "target_rank": 4, "initial_steps": 1, "final_steps": 2},
    {"name": "houlsby", "bottleneck": 8},
]
STAGES = {"lora": ("zero0", "zero3"), "adalora": ("zero0", "zero1", "zero2", "zero3"), "houlsby": ("zero0", "zero2")}
FP32 = [
    {"adapter": adapter, "engine": {"ds_config": stage}} for adapter in ADAPTERS for stage in STAGES[adapter["name"]]
]
BF16 = [
    {"adapter": adapter, "engine": {"ds_config": stage, "precision": "bf16"}}
    for adapter, stage in zip(ADAPTERS, ("zero1", "zero2", "zero3"), strict=True)
]
OTHERS: list[dict[str, Any]] = [
    {"adapter": {**ADAPTERS[0], "dropout": 0.1}, "engine": {"ds_config": "zero2", "activation_checkpointing": "full"}},
    {
        "adapter": {**ADAPTERS[1], "final_steps": 5},
        "optimizer": {"name": "sgd"},
        "engine": {"ds_config": "zero3_offload"},
    },
]
CASES = FP32 + BF16 + OTHERS


@pytest.fixture(scope="module", params=[1, 2])
def trained(request, tmp_path_factory) -> tuple[int, Path, list]:
    folder = tmp_path_factory.mktemp(f"ranks_{request.param}")
    return request.param, folder, run_ranks(request.param, train_and_resume, str(folder), CASES, STEPS)[0]


def weights(folder: Path, number: int, name: str = "one") -> dict[str, torch.Tensor]:
    return read_weights(folder / str(number) / name / f"step_{STEPS:08d}")


def apart(one: list, other: list) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_resuming_is_bitwise_and_frozen_weights_are_the_initial_ones(trained):
    _, folder, results = trained
    for number, (case, (curve, rest, _)) in enumerate(zip(CASES, results, strict=True)):
        assert curve[STEPS // 2 :] == rest, case
        one, again = weights(folder, number), weights(folder, number, "again")
        assert all(torch.equal(one[name], again[name]) for name in one | again), case
        state = json.loads((folder / str(number) / "again" / f"step_{STEPS:08d}" / "state.json").read_text())
        assert not {"importance", "uncertainty"} & set(state["engine"]["moments"]), "ranks are final by then"
        config = tiny_config(**case)
        for name, value in one.items():
            if any(word in name for word in ("lora_", "ranknum", ".adapter.")):
                continue
            first = initial_weight(name.replace(".base_layer", ""), value.shape, config.model, config.run.seed)
            assert torch.equal(value, first.bfloat16().float() if case in BF16 else first), (case, name)


def test_frozen_weights_have_no_moments_as_planned(trained):
    """At stage 3 so small weights stay gathered, which the plan leaves out. Once ranks are final, it is of more than there is."""
    for case, (*_, sizes) in zip(CASES[:-1], trained[2], strict=False):
        at_stage_3 = case["engine"]["ds_config"].startswith("zero3")
        for part, (planned, found) in sizes.items():
            if part == "optimiser" or not at_stage_3:
                assert planned == pytest.approx(found, rel=0.02), (case, part)


def test_adalora_reaches_its_target_rank(trained):
    _, folder, _ = trained
    for number, case in enumerate(CASES):
        if case["adapter"]["name"] != "adalora":
            continue
        values = [value for name, value in weights(folder, number).items() if "lora_E" in name]
        assert sum(int(value.count_nonzero()) for value in values) == 4 * len(values), case
        assert len({int(value.count_nonzero()) for value in values}) > 1, "ranks are meant to move between matrices"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter["name"])
def test_stages_and_ranks_train_what_plain_torch_trains(trained, adapter):
    expected = plain_training(tiny_config(adapter=adapter))
    for case, (curve, *_) in zip(FP32, trained[2], strict=False):
        if case["adapter"] == adapter:
            assert apart(curve, expected) <= 1e-5, (case, curve, expected)


def plain_training(config) -> list[tuple[float, float]]:
    """One process, whole tensors, peft as its documentation has it."""
    reference = Reference(config.model_copy(update={"adapter": tiny_config().adapter}))
    tuner = add_adapter(reference.model, config)
    reference.owners = ownership(reference.model, config.optimizer)
    curve, trained = [], reference.trained()
    for index in range(STEPS):
        loss, gradients = reference.gradients(rank_batches(index, 8, 0, 1))
        curve.append((loss, reference.clip(gradients)))
        if config.adapter.name == "adalora":
            add_penalty(trained, gradients, config.adapter.orthogonality)
        reference.update(index, gradients)
        if config.adapter.name == "adalora":
            for name, parameter in trained.items():
                parameter.grad = gradients[name]
            tuner.update_and_allocate(index + 1)
    return curve


def add_penalty(trained: dict, gradients: dict, weight: float) -> None:
    """As in the forward pass of peft's AdaLoraModel."""
    terms = []
    for name, p in trained.items():
        if "lora_A" in name or "lora_B" in name:
            covariance = p @ p.T if "lora_A" in name else p.T @ p
            terms.append(torch.norm(covariance - torch.eye(len(covariance)), p="fro"))
    found = torch.autograd.grad(weight * sum(terms) / len(terms), list(trained.values()), allow_unused=True)
    for name, gradient in zip(trained, found, strict=True):
        if gradient is not None:
            gradients[name] += gradient


def test_a_checkpoint_continues_at_another_stage_and_number_of_ranks(trained):
    ranks, folder, results = trained
    moves = []
    for name in STAGES:
        numbers = [number for number, case in enumerate(FP32) if case["adapter"]["name"] == name]
        moves += [(there, FP32[here]) for there, here in zip(numbers, reversed(numbers), strict=True)]
    curves = run_ranks(3 - ranks, resume_elsewhere, str(folder), moves, STEPS)[0]
    for (number, case), curve in zip(moves, curves, strict=True):
        assert apart(curve, results[number][1]) <= 1e-5, case


def test_ranks_are_allocated_where_one_rank_s_shard_has_none_of_the_adapter():
    """The head of 64 labels is larger than the adapter, so that the second of two shards is head alone."""
    case = {
        "data": {"datasets": [], "examples": {"train": "none.jsonl", "tokenizer": "none.json"}},
        "objective": {"name": "token_classification", "labels": [str(n) for n in range(VOCAB)], "head_dropout": 0.0},
        "validation": {"every_steps": 0},
        "adapter": {**ADAPTERS[1], "targets": ["q_proj"], "rank": 2, "target_rank": 1},
    }
    stages = ("zero0", "zero1", "zero2")
    first, *others = run_ranks(2, train_all, [{**case, "engine": {"ds_config": stage}} for stage in stages], STEPS)[0]
    assert all(apart(first, curve) <= 1e-5 for curve in others), (first, others)
