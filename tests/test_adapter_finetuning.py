"""`python -m tasks finetune --adapter`: a frozen model learns a task by an adapter, and comes back as it was trained."""

import argparse
import json
import random
from pathlib import Path

import pytest
import torch

from config import load_recipe
from engine.checkpoint import find_checkpoint
from engine.state import read_weights
from model import Model, build, set_task_head
from model.adapters import add_adapter
from tasks import finetune
from tasks.checkpoints import load_model
from tasks.embedding import Embedder
from tasks.evaluation.examples import on_examples
from tests.conftest import metrics, train

CPU = torch.device("cpu")
QUICK = ["engine.precision=fp32", "engine.compile=off", "monitor.peak_tflops=0.1", "monitor.tensorboard=false"]
NOUNS = {"animal": ("cat", "dog", "horse", "sheep"), "tool": ("hammer", "saw", "drill", "file")}


def write_examples(path: Path) -> Path:
    """64 that say which kind of thing their last word is."""
    draw = random.Random(1)
    lines = []
    for number in range(64):
        kind = ("animal", "tool")[number % 2]
        text = " ".join(
            [*draw.choices(["the", "model", "reads", "a", "row", "of", "tokens"], k=3), draw.choice(NOUNS[kind])]
        )
        lines.append(json.dumps({"text": text, "label": kind}) + "\n")
    path.write_text("".join(lines))
    return path


def write_recipe(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    assert finetune.run(parser.parse_intermixed_args([*map(str, arguments), "--write-only"])) == 0


def adapt(folder: Path, task: str, source: Path, adapter: str) -> tuple[Path, Path]:
    """The run of 64 examples learned by an adapter, and the examples."""
    examples, recipe = write_examples(folder / "examples.jsonl"), folder / "adapted.yaml"
    command = [task, source, "--adapter", adapter, "--train", examples, "--valid", examples, "--recipe", recipe]
    command += [
        "--epochs",
        150,
        f"run.folder={folder}/runs",
        "validation.every_steps=300",
        "checkpoint.every_steps=300",
    ]
    write_recipe(*command, "optimizer.lr=1e-2", *QUICK)
    done = train(recipe)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / load_recipe(str(recipe)).run.name, examples


@pytest.mark.slow
@pytest.mark.parametrize("adapter", finetune.ADAPTERS)
def test_an_adapter_overfits_64_examples_and_is_loaded_as_it_was_trained(pretrained, tmp_path, adapter):
    run, examples = adapt(tmp_path, "classification", pretrained["gpt"], adapter)
    last = [record for record in metrics(run) if "validation_loss" in record][-1]
    assert last["validation_accuracy"] == last["validation_f1"] == 1.0
    trained = load_model(run, CPU)
    report = on_examples(trained, str(examples), CPU).metrics
    assert report["accuracy"] == 1.0, report
    assert report["nll"] == pytest.approx(last["validation_loss"], abs=1e-5)
    vectors = Embedder(trained, "mean").encode(["a cat", "a saw"])
    assert vectors.isfinite().all() and (vectors[0] - vectors[1]).norm() > 0.01
    weights = read_weights(find_checkpoint(run))
    unmerged = unmerged_model(run, weights)
    tokens = torch.arange(5, 45).view(2, 20)
    with torch.no_grad():
        expected, found = (model.lm_head(model(tokens)) for model in (unmerged, trained.model))
    assert (found - expected).abs().max() <= 1e-5
    if adapter == "adalora":
        left = [int(value.count_nonzero()) for name, value in weights.items() if "lora_E" in name]
        assert sum(left) == 8 * len(left) and len(set(left)) > 1


def unmerged_model(run: Path, weights: dict[str, torch.Tensor]) -> Model:
    """As it was trained."""
    recipe = load_recipe(str(find_checkpoint(run) / "recipe.yaml"))
    model = build(recipe.model)
    set_task_head(model, recipe.objective)
    add_adapter(model, recipe)
    model.load_state_dict(weights)
    return model.eval()
