"""The self-check passes what is right in every precision and at every stage, and fails what is broken."""

from contextlib import nullcontext

import pytest

import train
from config.command_line import CommandLine
from engine.self_check import Verdict, without_dropout
from tests.conftest import train as run_train
from tests.ranks import run_ranks
from tests.tiny import tiny_config
from tests.workers.checks import check_all, check_broken

MUON = ["optimizer.name=muon", "optimizer.cautious_decay=true"]


@pytest.mark.parametrize("world_size", [1, 2])
def test_right_configurations_pass(recipe, world_size):
    cases = [
        ["engine.ds_config=zero0", *MUON],
        ["engine.ds_config=zero2", "engine.precision=bf16_autocast", "batch.micro_batch_size=1"],
        ["engine.ds_config=zero1", "engine.precision=bf16", *MUON],
        ["engine.ds_config=zero3", "model.preset=gpt2", "model.num_kv_heads=4", "model.dropout=0.1"],
    ]
    verdicts = run_ranks(world_size, check_all, str(recipe), cases)
    assert all(verdict == verdicts[0] for verdict in verdicts), "ranks disagree"
    for case, verdict in zip(cases, verdicts[0], strict=True):
        assert verdict.failures == [], f"{case}\n{verdict.text}"
        assert "self-check passed" in verdict.text and f"{world_size} × " in verdict.text
    assert "muon lr 0.01 decay 0.1" in verdicts[0][0].text and "attention sdpa" in verdicts[0][0].text
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize("shared", ["sequence_parallel", "tensor_parallel"])
def test_ranks_that_share_rows_pass(recipe, shared):
    cases = [[f"engine.{shared}=2", f"engine.ds_config=zero{stage}"] for stage in (0, 2, 3)]
    for case, verdict in zip(cases, run_ranks(2, check_all, str(recipe), cases)[0], strict=True):
        assert verdict.failures == [], f"{case}\n{verdict.text}"


@pytest.mark.parametrize(
    "model",
    [
        "{family: bert, preset: bert, vocab_size: 576, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64}",
        "{family: t5, vocab_size: 640, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64}",
    ],
    ids=["bert", "t5"],
)
def test_other_families_pass(recipe, model):
    text = recipe.read_text()
    before, rest = text.split("model:\n")
    recipe.write_text(f"{before}model: {model}\n{rest.partition(chr(10))[2]}")
    for verdict in run_ranks(1, check_all, str(recipe), [["engine.ds_config=zero2", *MUON]])[0]:
        assert verdict.failures == [], verdict.text
        assert "muon" in verdict.text


def test_no_dropout_is_left():
    """Its masks are drawn by rank and micro-batch."""
    examples = {"train": "none.jsonl", "valid": "none.jsonl", "tokenizer": "none.json"}
    config = tiny_config(
        data={"datasets": [], "examples": examples},
        objective={"name": "classification", "labels": ["cat", "dog"], "head_dropout": 0.1},
        model={"dropout": 0.1},
        adapter={"name": "lora", "dropout": 0.1},
    )
    plain = without_dropout(config)
    assert (plain.model.dropout, plain.objective.head_dropout, plain.adapter.dropout) == (0, 0, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16_autocast"])
def test_broken_optimisers_fail(recipe, precision):
    cases = {"muon without orthogonalisation": MUON, "adamw with its second moment lost": []}
    cases = {broken: [*overrides, f"engine.precision={precision}"] for broken, overrides in cases.items()}
    verdicts = run_ranks(1, check_broken, str(recipe), cases)[0]
    assert any("muon" in failure for failure in verdicts["muon without orthogonalisation"].failures)
    for broken, verdict in verdicts.items():
        assert verdict.failures and "self-check FAILED" in verdict.text, broken


def test_the_command_prints_the_verdict_and_writes_nothing(recipe):
    done = run_train(recipe, "--self-check", "schedule.steps=4", "schedule.warmup_steps=0")
    assert done.returncode == 0, done.stderr
    assert "self-check passed" in done.stdout and "first gradient" in done.stdout
    assert not (recipe.parent / "runs").exists()


@pytest.mark.parametrize(("failures", "code"), [([], 0), (["loss of step 3 differs"], 1)])
def test_the_exit_code_is_the_verdict(recipe, monkeypatch, failures, code):
    from config import load_recipe

    monkeypatch.setattr("engine.self_check.self_check", lambda *_: Verdict("verdict", failures))
    world = type("World", (), {"is_main": True})()
    monkeypatch.setattr("engine.dist.connected", lambda *_: nullcontext(world))
    command = CommandLine(load_recipe(str(recipe), []), (str(recipe),), debug=False, self_check=True)
    assert train.check(command, stream=None) == code
