"""A fine-tuning in this process, up to the point where it would train."""

import argparse
from pathlib import Path

import torch

from config import RunConfig, load_recipe
from engine.start_from import start_from
from engine.weights import fill_weights
from model import build, set_task_head
from tasks import finetune
from tests.labelled import write_examples


def write_recipe(folder: Path, kind: str, tmp_path: Path, *options: str) -> RunConfig:
    """What `python -m tasks finetune` writes."""
    examples = write_examples(tmp_path / "examples.jsonl", kind)
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    task = {"pair": "classification", "conversation": "instruction"}.get(kind, kind)
    files = ("--train", str(examples), "--valid", str(examples), "--recipe", str(tmp_path / "r.yaml"))
    pair = ("--pair", "second") if kind == "pair" else ()
    options = (
        task,
        str(folder),
        f"run.folder={tmp_path}",
        "data.examples.truncate=true",
        *options,
        *files,
        *pair,
        "--write-only",
    )
    assert finetune.run(parser.parse_args(options)) == 0
    return load_recipe(str(tmp_path / "r.yaml"))


def started(folder: Path, config: RunConfig) -> tuple[torch.nn.Module, str]:
    model = build(config.model)
    set_task_head(model, config.objective)
    fill_weights(model, config.model, seed=0)
    return model.eval(), start_from(model, config.model, str(folder))
