"""From a trained model to a task: starting weights, labelled examples, heads, early stopping, as a user runs them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import load_recipe
from engine.checkpoint import find_checkpoint
from engine.state import read_weights
from tasks.checkpoints import load_model
from tasks.evaluation.examples import on_examples
from tests.conftest import MODEL, ROOT, environment, metrics, task, train
from tests.labelled import write_examples

TASKS = {
    "classification": "labels: [cat, dog]",
    "regression": "mean: 4, scale: 2.3, head_dropout: 0",
    "token_classification": "labels: [O, B-A, I-A, B-B, I-B]",
}


def finetune_recipe(folder: Path, task: str, source: Path) -> Path:
    examples = write_examples(folder / f"{task}.jsonl", task)
    recipe = folder / f"{task}.yaml"
    recipe.write_text(f"""# A task.
run: {{folder: {folder}/runs, start_from: {source}}}
data: {{examples: {{train: {examples}, valid: {examples}}}, row_length: 48}}
model: {{family: bert, {MODEL}, dropout: 0}}
objective: {{name: {task}, {TASKS[task]}}}
batch: {{global_batch_size: 16, micro_batch_size: 16}}
optimizer: {{lr: 5e-3}}
schedule: {{steps: 200, warmup_steps: 4}}
engine: {{precision: fp32, compile: 'off'}}
checkpoint: {{every_steps: 1000}}
validation: {{every_steps: 100}}
monitor: {{peak_tflops: 0.1, sample_tokens: 0, tensorboard: false}}
""")
    return recipe


def test_the_command_writes_a_recipe_that_train_py_runs_and_keeps_the_best_of(pretrained, tmp_path):
    examples, recipe = write_examples(tmp_path / "train.jsonl", "classification"), tmp_path / "mine.yaml"
    command = [
        "finetune",
        "classification",
        pretrained["bert"],
        "--train",
        examples,
        "--valid",
        examples,
        "--recipe",
        recipe,
    ]
    command += ["--epochs", "200", "--balanced", f"run.folder={tmp_path}/runs", "optimizer.lr=5e-3"]
    command += ["monitor.tensorboard=false", "monitor.peak_tflops=0.1", "engine.compile=off", "engine.precision=fp32"]
    command += ["validation.patience=2", "validation.every_steps=20", "data.row_length=48"]
    run = task(*command)
    assert run.returncode == 0, run.stderr
    config = load_recipe(str(recipe))
    assert config.objective.labels == ("cat", "dog") and 0.5 < min(config.objective.class_weights) <= 1
    folder = tmp_path / "runs/mine"
    judged = {r["step"]: r["validation_f1"] for r in metrics(folder) if "validation_f1" in r}
    best = max(judged, key=judged.get)
    assert judged[best] >= 0.95
    assert (folder / "checkpoints/best").read_text().strip() == f"step_{best:08d}"
    assert max(judged) == best + 2 * 20 < config.schedule.steps, "patience ends the run two validations after the best"
    assert find_checkpoint(folder).name == f"step_{best:08d}"
    kept, newest = (read_weights(folder / f"checkpoints/step_{step:08d}") for step in (best, max(judged)))
    loaded = load_model(folder, torch.device("cpu")).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in kept.items())
    assert not torch.equal(loaded["lm_head.output.weight"], newest["lm_head.output.weight"])

    again = train(recipe)
    assert again.returncode == 0 and "is complete" in again.stdout and "ended" not in again.stderr
    edited = recipe.read_text()
    recipe.write_text(edited + "\n# mine\n")
    refused = task(*command)
    assert refused.returncode == 2 and "exists with other settings" in refused.stderr
    assert recipe.read_text() == edited + "\n# mine\n"


def test_ctrl_c_lets_the_training_finish_its_step_and_save(pretrained, tmp_path):
    examples = write_examples(tmp_path / "train.jsonl", "classification")
    command = [sys.executable, "-m", "tasks", "finetune", "classification", str(pretrained["bert"])]
    command += ["--train", str(examples), "--valid", str(examples), "--recipe", str(tmp_path / "r.yaml")]
    command += ["--epochs", "5000", f"run.folder={tmp_path}/runs", "engine.compile=off", "monitor.tensorboard=false"]
    command += ["validation.every_steps=0", "validation.keep_best=false"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **pipes) as run:
        assert run.stdout is not None and any(line.startswith("step 1/") for line in run.stdout)
        os.killpg(run.pid, signal.SIGINT)
        said, complaints = run.communicate(timeout=60)
    assert "the same command continues from there" in said + complaints


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hidden_size=64", "hidden_size is 64, the source's 32"),
        ("model.num_layers=3", "model.num_layers is 3, the source's 2"),
        ("model.vocab_size=600", "embed_tokens.weight is [640, 32] there, [600, 32] here"),
        ("run.start_from=nowhere", "nowhere"),
        ('data.examples.valid=""', "data.examples.valid is needed to validate"),
        ("objective.labels=[a, a]", "names a label twice"),
        ("objective.class_weights=[1]", "class_weights has 1 numbers for 2 labels"),
        ("validation.metric=spearman", "validation.metric spearman is none of loss, accuracy, f1"),
    ],
)
def test_another_model_is_refused_by_name_and_both_numbers(pretrained, tmp_path, override, message):
    run = train(finetune_recipe(tmp_path, "classification", pretrained["bert"]), override)
    assert run.returncode == 2 and message in run.stderr, run.stderr


def test_debug_keeps_the_model_that_it_starts_from_and_the_rows(pretrained, tmp_path):
    recipe = finetune_recipe(tmp_path, "classification", pretrained["bert"])
    run = train(recipe, "--debug", "schedule.steps=2", "validation.every_steps=2")
    assert run.returncode == 0, run.stderr
    assert f"parameters from {pretrained['bert']}" in " ".join(run.stdout.split())
    saved = load_recipe(str(tmp_path / "runs/classification-debug/recipe.yaml"))
    assert saved.model == load_recipe(str(recipe)).model and saved.data.row_length == 48


def test_a_grown_vocabulary_keeps_the_old_rows_and_a_resumed_run_needs_no_source(pretrained, tmp_path):
    recipe = finetune_recipe(tmp_path, "classification", pretrained["bert"])
    source = tmp_path / "source"
    shutil.copytree(pretrained["bert"], source)
    run_options = (
        f"run.start_from={source}",
        "model.vocab_size=704",
        "schedule.warmup_steps=0",
        "optimizer.lr=1e-12",
        "optimizer.weight_decay=0",
    )
    first = train(recipe, *run_options, "schedule.steps=1", "schedule.name=constant")
    assert first.returncode == 0, first.stderr
    assert "new rows: embed_tokens.weight 640 → 704" in " ".join(first.stdout.split())
    before, after = (read_weights(find_checkpoint(path)) for path in (source, tmp_path / "runs/classification"))
    assert torch.allclose(after["embed_tokens.weight"][:640], before["embed_tokens.weight"], atol=1e-9)
    assert torch.allclose(
        after["blocks.1.attention.q_proj.weight"], before["blocks.1.attention.q_proj.weight"], atol=1e-9
    )
    shutil.rmtree(source / "checkpoints/step_00000002/fragments")
    again = train(recipe, *run_options, "schedule.steps=2", "schedule.name=constant")
    assert again.returncode == 0, again.stderr
    assert "those of the checkpoint" in again.stdout


@pytest.mark.slow
def test_two_ranks_under_zero_3_learn_and_score_as_one_process(pretrained, tmp_path):
    found = []
    for name, ranks, options in (
        ("one", 1, ("engine.ds_config=zero0",)),
        ("two", 2, ("engine.ds_config=zero3", "batch.micro_batch_size=4")),
    ):
        recipe = finetune_recipe(tmp_path, "token_classification", pretrained["bert"])
        options = (
            *options,
            f"run.name={name}",
            "schedule.steps=6",
            "validation.every_steps=3",
            "objective.head_dropout=0",
        )
        run = train(recipe, *options, ranks=ranks)
        assert run.returncode == 0, run.stderr
        found.append([record for record in metrics(tmp_path / "runs" / name) if "validation_loss" in record])
    for one, two in zip(*found, strict=True):
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], abs=1e-5)
        assert (one["validation_accuracy"], one["validation_f1"]) == (two["validation_accuracy"], two["validation_f1"])
    examples, device = str(tmp_path / "token_classification.jsonl"), torch.device("cpu")
    whole = on_examples(load_model(tmp_path / "runs/two", device), examples, device)
    assert whole.metrics["accuracy"] == pytest.approx(found[1][-1]["validation_accuracy"]), "what two ranks saved"
