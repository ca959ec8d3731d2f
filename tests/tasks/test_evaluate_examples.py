"""`python -m tasks evaluate --examples` on really fine-tuned runs, against what validation said of them."""

import json
import subprocess
import sys

import pytest

from config import load_recipe
from tests.conftest import ROOT, environment, metrics, train
from tests.test_finetune import finetune_recipe

pytestmark = pytest.mark.slow
SAME = {
    "classification": {"accuracy": "accuracy", "f1_macro": "f1"},
    "token_classification": {"accuracy": "accuracy", "entity_f1": "f1"},
    "regression": {"pearson": "pearson", "spearman": "spearman"},
}
"""What the report calls the scores of validation."""


@pytest.mark.parametrize("task", [*SAME, "seq2seq", "instruction"])
def test_the_report_agrees_with_validation(pretrained, tmp_path, task):
    family = {"seq2seq": "t5", "instruction": "gpt"}.get(task, "bert")
    # Labels are compared before they are learned, so that not all scores are 1.
    short = ["schedule.steps=12", "validation.every_steps=12"] if task in SAME else []
    run = train(finetune_recipe(tmp_path, task, pretrained[family]), *short)
    assert run.returncode == 0, run.stderr
    last = [record for record in metrics(tmp_path / f"runs/{task}") if "validation_loss" in record][-1]
    examples = tmp_path / f"{task}.jsonl"
    command = [sys.executable, "-m", "tasks", "evaluate", str(tmp_path / f"runs/{task}"), "--examples", str(examples)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out/evaluation.json").read_text())["results"]
    if task not in SAME:
        assert result["metrics"]["exact_match"] >= 0.9, result  # they overfit these examples
    for ours, theirs in SAME.get(task, {}).items():
        assert result["metrics"][ours] == pytest.approx(last[f"validation_{theirs}"], abs=1e-3), ours
    if task == "regression":
        scale = load_recipe(str(tmp_path / "regression.yaml")).objective.scale  # the unit of the loss
        assert result["metrics"]["mse"] == pytest.approx(last["validation_loss"] * scale**2, rel=1e-4)
    if task == "classification":
        refused = subprocess.run(
            [*command[:-2], "--text", str(examples)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert "learned objective classification: give --examples" in refused.stderr
