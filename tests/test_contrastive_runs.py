"""Contrastive training on labelled pairs through train.py, as a user runs it."""

import json
import re

import pytest

from tests.conftest import metrics, train

PAIRS = ["objective.name=contrastive_pairs", "objective.hard_negatives=1", "objective.negatives_from=global_batch"]
QUICK = ["schedule.name=constant", "schedule.steps=4", "validation.every_steps=2", "checkpoint.every_steps=2"]


@pytest.fixture
def pairs(recipe, corpus, tmp_path) -> list[str]:
    """The tiny recipe's settings for 40 pairs instead of its corpus."""
    lines = [
        {"anchor": f"the model {n}", "positive": f"each row {n}", "negative": f"each row {n + 1}"} for n in range(40)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = recipe.read_text()
    file = tmp_path / "pairs.jsonl"
    recipe.write_text(text.replace(f"datasets: [{{path: {corpus}}}]", f"pairs: {{train: {file}, valid: {file}}}"))
    return [str(recipe), *PAIRS, *QUICK]


@pytest.mark.slow
def test_a_run_continues_as_if_it_had_not_stopped_and_notices_other_pairs(pairs, corpus, tmp_path):
    pairs = [*pairs, f"data.pairs.tokenizer={corpus}"]
    result = train(*pairs, "monitor.profile_steps=[2]")
    assert result.returncode == 0, result.stderr
    assert "40 rows" in result.stdout
    assert re.search(r"data \S+ ms, first pass \S+ ms, forward", result.stdout), "GradCache's own"
    longer = [*pairs, "schedule.steps=6"]
    assert train(*longer, "batch.micro_batch_size=4").returncode == 0  # harmless under GradCache
    assert train(*longer, "run.resume=fresh").returncode == 0
    keys = ("step", "loss", "validation_loss")
    continued, whole = (
        [[record.get(key) for key in keys] for record in metrics(tmp_path / folder)]
        for folder in ("runs/tiny.1", "runs/tiny")
    )
    assert len(continued) == len(whole)
    for found, expected in zip(continued, whole, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    with (tmp_path / "pairs.jsonl").open("a") as file:
        file.write('{"anchor": "a", "positive": "b", "negative": "c"}\n')
    refused = train(*pairs, "schedule.steps=8")
    assert refused.returncode == 2 and "content of" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_run_starts_where_another_ended(pairs, corpus, tmp_path, adapter):
    """With its weights, its learned temperature and its tokens."""
    learnable = ["objective.learnable_temperature=true", "objective.temperature=0.5", "optimizer.lr=3e-2"]
    first = train(*pairs, *learnable, f"data.pairs.tokenizer={corpus}", "schedule.steps=20", "run.name=first")
    assert first.returncode == 0, first.stderr
    still = [
        "optimizer.lr=1e-12",
        "schedule.steps=1",
        "schedule.warmup_steps=0",
        "validation.every_steps=1",
        f"adapter.name={adapter}",
    ]
    second = train(*pairs, *learnable, *still, "run.name=second", f"run.start_from={tmp_path}/runs/first")
    assert second.returncode == 0, second.stderr
    begun, ended, again = (
        next(r for r in records if "validation_loss" in r)["validation_loss"]
        for records in (metrics(tmp_path / "runs/first"), metrics(tmp_path / "runs/first")[::-1],
                        metrics(tmp_path / "runs/second"))
    )  # fmt: skip
    assert again == pytest.approx(ended, abs=1e-5) and abs(ended - begun) > 0.01


def test_a_mistake_in_the_pairs_is_reported_before_training(pairs, corpus, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"anchor": "a", "positive": ""}\n')
    result = train(*pairs, f"data.pairs.tokenizer={corpus}")
    assert result.returncode == 2 and "pairs.jsonl:1: 'positive' is ''" in result.stderr
