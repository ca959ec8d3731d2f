"""`python -m tasks evaluate --examples` on really fine-tuned runs, against what validation said of them."""

import json

import pytest

from config import load_recipe
from tests.conftest import metrics, task, train
from tests.test_finetune import finetune_recipe

pytestmark = pytest.mark.slow
SAME = {
    "classification": {"accuracy": "accuracy", "f1_macro": "f1"},
    "token_classification": {"accuracy": "accuracy", "entity_f1": "f1"},
    "regression": {"pearson": "pearson", "spearman": "spearman"},
}
"""What the report calls the scores of validation."""


@pytest.mark.parametrize("kind", SAME)
def test_the_report_agrees_with_validation(pretrained, tmp_path, kind):
    """Before the labels are learned, so that not all scores are 1."""
    short = ("schedule.steps=12", "validation.every_steps=12")
    run = train(finetune_recipe(tmp_path, kind, pretrained["bert"]), *short)
    assert run.returncode == 0, run.stderr
    last = [record for record in metrics(tmp_path / f"runs/{kind}") if "validation_loss" in record][-1]
    examples = tmp_path / f"{kind}.jsonl"
    command = ["evaluate", tmp_path / f"runs/{kind}"]
    done = task(*command, "--examples", examples, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out/evaluation.json").read_text())["results"]
    for ours, theirs in SAME[kind].items():
        assert result["metrics"][ours] == pytest.approx(last[f"validation_{theirs}"], abs=1e-3), ours
    if kind == "regression":
        scale = load_recipe(str(tmp_path / "regression.yaml")).objective.scale  # the unit of the loss
        assert result["metrics"]["mse"] == pytest.approx(last["validation_loss"] * scale**2, rel=1e-4)
    if kind == "classification":
        refused = task(*command, "--text", examples)
        assert "learned objective classification: give --examples" in refused.stderr
