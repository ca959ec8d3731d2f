"""Every task learns 64 examples by heart, as a user asks for it: `python -m tasks finetune`, then `evaluate --examples`."""

import json

import pytest

from tests.conftest import task
from tests.labelled import write_examples

pytestmark = pytest.mark.slow
OPTIONS = ("batch.global_batch_size=16", "batch.micro_batch_size=16", "optimizer.lr=5e-3", "engine.precision=fp32")
OPTIONS += ("monitor.peak_tflops=0.1", "monitor.tensorboard=false", "engine.compile=off", "monitor.sample_tokens=0")
OPTIONS += ("checkpoint.every_steps=1000", "validation.every_steps=50", "schedule.steps=200")
PERFECT = {
    "classification": {"accuracy": 1.0, "f1_macro": 1.0},
    "regression": {"pearson": 0.999, "spearman": 0.999},
    "token_classification": {"accuracy": 1.0, "entity_f1": 1.0},
    "relation": {"accuracy": 1.0, "f1_macro": 1.0},
    "seq2seq": {"exact_match": 1.0},
    "instruction": {"exact_match": 1.0},
}
KINDS = [
    ("bert", "classification", "classification", ("schedule.steps=400",)),
    ("modernbert", "classification", "classification", ("schedule.steps=400",)),
    ("gpt", "classification", "classification", ()),
    ("bert", "classification", "pair", ("--pair", "second", "schedule.steps=400")),
    ("modernbert", "regression", "regression", ("objective.head_dropout=0", "schedule.steps=400")),
    ("bert", "token_classification", "token_classification", ()),
    ("modernbert", "relation", "relation", ()),
    ("t5", "seq2seq", "seq2seq", ()),
    ("gpt", "instruction", "instruction", ()),
    ("gpt", "instruction", "instruction", ("objective.packing=false", "schedule.steps=400")),
    ("gpt", "instruction", "conversation", ()),
]


@pytest.mark.parametrize(("family", "name", "kind", "options"), KINDS)
def test_64_examples_are_learned_by_heart(pretrained, tmp_path, family, name, kind, options):
    examples = write_examples(tmp_path / "examples.jsonl", kind)
    command = ["finetune", name, pretrained[family], "--train", examples, "--valid", examples]
    command += ["--recipe", tmp_path / "r.yaml", f"run.folder={tmp_path}/runs", "run.name=learned", *OPTIONS, *options]
    done = task(*command)
    assert done.returncode == 0, done.stderr
    done = task("evaluate", tmp_path / "runs/learned", "--examples", examples, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "out/evaluation.json").read_text())["results"]
    assert all(result["metrics"][name] >= least for name, least in PERFECT[name].items()), result
