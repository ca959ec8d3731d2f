"""`python -m tasks evaluate --examples` on really fine-tuned runs, against what validation said of them."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, environment, metrics, train
from tests.test_finetune import finetune_recipe

pytestmark = pytest.mark.slow
SCORES = {
    "classification": "accuracy",
    "token_classification": "entity_f1",
    "regression": "spearman",
    "seq2seq": "chrf",
}


@pytest.mark.parametrize("task", [*SCORES, "instruction"])
def test_the_report_agrees_with_validation(pretrained, tmp_path, task):
    family = {"seq2seq": "t5", "instruction": "gpt"}.get(task, "bert")
    run = train(finetune_recipe(tmp_path, task, pretrained[family]))
    assert run.returncode == 0, run.stderr
    last = [record for record in metrics(tmp_path / f"runs/{task}") if "validation_loss" in record][-1]
    examples = tmp_path / f"{task}.jsonl"
    command = [sys.executable, "-m", "tasks", "evaluate", str(tmp_path / f"runs/{task}"), "--examples", str(examples)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out/evaluation.json").read_text())["results"]
    if task in ("seq2seq", "instruction"):
        assert result["metrics"]["exact_match"] >= 0.9, result  # they overfit these examples
    elif task == "regression":
        assert result["metrics"]["spearman"] == pytest.approx(last["validation_spearman"], abs=1e-3)
    else:
        assert result["metrics"]["accuracy"] == pytest.approx(last["validation_accuracy"])
        assert result["metrics"][SCORES[task]] == pytest.approx(last["validation_f1"], abs=1e-6)
    if task == "classification":
        wrong = tmp_path / "wrong.jsonl"
        wrong.write_text('{"text": "a cat", "label": "plant"}\n')
        refused = subprocess.run(
            [*command[:-1], str(wrong)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert refused.returncode == 2 and "plant" in refused.stderr and refused.stderr.count("\n") == 1
        refused = subprocess.run(
            [*command[:-2], "--text", str(examples)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert "was fine-tuned for classification: give --examples" in refused.stderr
