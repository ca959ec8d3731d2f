"""`python -m tasks evaluate --examples`: each wrong file is one message, and how a file is read can be set."""

from pathlib import Path

import pytest
import torch

from config import ConfigError, DataError, RunConfig
from data.specials import BERT
from data.tokenizer import byte_tokenizer
from model import build, init_weights, set_task_head
from tasks.checkpoints import Trained
from tasks.evaluation.examples import on_examples
from tests.model.tiny import tiny_config
from tests.tasks.trained import tiny_trained

CPU = torch.device("cpu")


@pytest.fixture
def trained(tmp_path) -> Trained:
    """An untrained classifier of bytes in rows of 16."""
    recipe = RunConfig.model_validate(
        {
            "run": {"folder": str(tmp_path), "name": "cls"},
            "data": {"examples": {"train": "train.csv", "valid": "valid.csv", "tokenizer": "bytes"}, "row_length": 16},
            "model": tiny_config("bert", vocab_size=320).model_dump(exclude={"pooler"}),
            "objective": {"name": "classification", "labels": ["cat", "dog"]},
            "batch": {"global_batch_size": 8, "micro_batch_size": 8},
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 8, "warmup_steps": 2},
        }
    )
    model = build(recipe.model)
    set_task_head(model, recipe.objective)
    init_weights(model, recipe.model, seed=0)
    tokenizer = byte_tokenizer().with_special_tokens(BERT)
    return Trained(model.eval(), tokenizer, recipe.model, recipe.objective, recipe)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "text,label\na,cat\nb,cow\n", r"x\.csv:3: label 'cow' is none of the 2 labels .* \(cat, dog\)"),
        (
            "x.csv",
            "words,label\na,cat\n",
            r"x\.csv:2: has no field 'text', only words, label: set data\.examples\.text",
        ),
        ("x.csv", "text,label\na,cat,dog\n", r"x\.csv:2: 3 columns, but the header has 2"),
        (
            "x.csv",
            f"text,label\n{'a' * 20},cat\n",
            r"x\.csv:2: 20 tokens of text, but data\.row_length 16 leaves room for 14",
        ),
        ("x.csv", "text,label\n", r"x\.csv: holds no examples"),
        ("x.jsonl", "", r"x\.jsonl: holds no examples"),
        ("x.jsonl", '{"text": "a", "label": "cat"}\n{"text": \n', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", '{"text": "a"}\n', r"x\.jsonl:1: has no field 'label', only text"),
        ("x.xml", "<a/>", r"x\.xml: examples are read from \.jsonl, \.csv"),
    ],
)
def test_each_wrong_file_is_named_by_its_line(trained, tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        on_examples(trained, write(tmp_path / name, text), CPU)


def test_how_a_file_is_read_can_be_set_and_nothing_else(trained, tmp_path):
    path = write(tmp_path / "x.csv", f"review,kind\n{'a' * 20},cat\nb,dog\nc,cat\n")
    fields = ["data.examples.text=review", "data.examples.label=kind"]
    cut = on_examples(trained, path, CPU, [*fields, "data.examples.truncate=true"])
    whole = on_examples(trained, path, CPU, [*fields, "data.row_length=32"])
    assert cut.metrics["examples"] == whole.metrics["examples"] == 3
    assert cut.reliability != whole.reliability, "the long text was read to its end"
    with pytest.raises(
        ConfigError, match=r"--set objective\.labels=.*: the model is trained; set only how examples are"
    ):
        on_examples(trained, path, CPU, ["objective.labels=[review, kind]"])
    with pytest.raises(ConfigError, match=r"data\.examples\.txt"):
        on_examples(trained, path, CPU, ["data.examples.txt=review"])


def test_a_model_without_a_task_is_refused(tmp_path):
    path = write(tmp_path / "x.csv", "text,label\na,cat\n")
    with pytest.raises(ConfigError, match="--examples needs a run that was fine-tuned on examples"):
        on_examples(tiny_trained(tiny_config("bert", vocab_size=320)), path, CPU)
