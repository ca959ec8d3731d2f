"""From a fine-tuned run to its export and back: what reads the run reads the folder, with the same results."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from config.supervised_schema import HEADED
from data.specials import BERT, T5
from data.tokenizer import byte_tokenizer
from tasks.checkpoints import load_model
from tasks.embedding import Embedder
from tasks.evaluation.examples import on_examples
from tasks.export.folder import export
from tasks.serve.classifier import Classifier
from tests.conftest import train

CPU = torch.device("cpu")
SIZES = dict(vocab_size=384, num_layers=2, hidden_size=32, num_heads=4, max_positions=96)
TASKS = {
    "pairs": ("bert", {"name": "classification", "labels": ["no", "yes"]}, ("a b", "yes")),
    "decoder": ("gpt", {"name": "classification", "labels": ["no", "yes"]}, (None, "yes")),
    "number": ("bert", {"name": "regression", "mean": 3.0, "scale": 2.0}, (None, 4)),
    "tokens": ("bert", {"name": "token_classification", "labels": ["O", "B-X"]}, (None, ["O", "B-X", "O"])),
    "translation": ("t5", {"name": "seq2seq", "target_length": 8}, (None, "ab")),
    "answers": ("gpt", {"name": "instruction"}, (None, "ab")),
}


def examples(folder: Path, task: str) -> Path:
    _, objective, (second, label) = TASKS[task]
    text = ["one", "two", "three"] if objective["name"] == "token_classification" else "one two three"
    path = folder / "examples.jsonl"
    labels = [label + number if isinstance(label, int) else label for number in range(4)]
    records = [{"text": text, "label": one, **({"second": second} if second else {})} for one in labels]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def finetuned(folder: Path, task: str) -> Path:
    """A run of two steps."""
    family, objective, (second, _) = TASKS[task]
    byte_tokenizer().with_special_tokens({"bert": BERT, "t5": T5}.get(family, ())).save(folder / "tokenizer.json")
    path = str(examples(folder, task))
    fields = {"train": path, "valid": path, "tokenizer": str(folder / "tokenizer.json")}
    recipe = {
        "run": {"name": task, "folder": str(folder / "runs")},
        "data": {"examples": fields | ({"pair": "second"} if second else {}), "row_length": 48},
        "model": {"family": family, **SIZES, **({"dropout": 0.0} if family == "bert" else {})},
        "objective": objective,
        "batch": {"global_batch_size": 4, "micro_batch_size": 4},
        "optimizer": {"lr": 1e-3},
        "schedule": {"steps": 2, "warmup_steps": 0},
        "engine": {"precision": "fp32", "compile": "off"},
        "validation": {"every_steps": 2},
        "monitor": {"peak_tflops": 0.1, "sample_tokens": 0, "tensorboard": False},
    }
    (folder / "recipe.yaml").write_text(f"# A task.\n{yaml.safe_dump(recipe)}")
    done = train(folder / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    return folder / "runs" / task


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_evaluation_of_the_folder_is_that_of_the_run(task, tmp_path):
    run, out = finetuned(tmp_path, task), tmp_path / "out"
    assert max(export(run, out).values()) <= 1e-5
    path = str(examples(tmp_path, task))
    trained = [load_model(folder, CPU) for folder in (run, out)]
    ours, again = (on_examples(each, path, CPU).metrics for each in trained)
    assert again == pytest.approx(ours, abs=1e-5, nan_ok=True)
    if isinstance(trained[0].objective, HEADED):
        given = {"pairs": ("one two", "a"), "tokens": ["one", "two"]}.get(task, "one two")
        served = [Classifier(each) for each in trained]
        ours, again = (one.scores([one.read("input", given)])[0] for one in served)
        np.testing.assert_allclose(again, ours, atol=1e-5)
    text = (out / "README.md").read_text()
    assert "| validation loss |" in text and f"| objective | {TASKS[task][1]['name']} |" in text
    assert f"| learned from | {path} (" in text


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_decoder_that_learned_vectors(pooling, recipe, tmp_path):
    """Its rows are [CLS] text [SEP], of which the folder's tokenizer and reader know."""
    settings = ("objective.name=contrastive", f"objective.pooling={pooling}", "objective.dimensions=[16, 32]")
    done = train(recipe, *settings, "schedule.steps=2", "validation.every_steps=0")
    assert done.returncode == 0, done.stderr
    run, out, shorter = tmp_path / "runs/tiny", tmp_path / "out", tmp_path / "shorter"
    texts = ["a text", "another, longer one", ""]
    for source, folder, dimensions in ((run, out, None), (out, shorter, 16)):
        export(source, folder, dimensions=dimensions)
        expected_ND = Embedder(load_model(run, CPU), dimensions=dimensions).encode(texts)
        theirs_ND = torch.from_numpy(SentenceTransformer(str(folder), device="cpu").encode(texts))
        again_ND = Embedder(load_model(folder, CPU)).encode(texts)
        assert (theirs_ND - expected_ND).abs().max() <= 1e-6 and (again_ND - expected_ND).abs().max() <= 1e-6
