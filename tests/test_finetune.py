"""From a trained model to a task: starting weights, labelled examples, heads, early stopping, as a user runs them."""

import json
import random
import re
from pathlib import Path

import pytest

from tests.conftest import metrics, train, write_recipe

MODEL = "vocab_size: 640, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64"
ANIMALS, TOOLS = ("cat", "dog", "horse", "sheep"), ("hammer", "saw", "drill", "file")
TASKS = {
    "classification": ("bert", "labels: [animal, tool]", ""),
    "pair": ("bert", "labels: ['no', 'yes']", ", pair: second"),
    "decoder": ("gpt", "labels: [animal, tool]", ""),
    "regression": ("bert", "mean: 2, scale: 1.5, head_dropout: 0", ""),
    "token_classification": ("bert", "labels: [O, B-A, I-A, B-T, I-T]", ""),
    "relation": ("bert", "labels: [eats, uses]", ""),
    "seq2seq": ("t5", "target_length: 16", ""),
    "instruction": ("gpt", "packing: true", ""),
}
OBJECTIVE = {"pair": "classification", "decoder": "classification"}


@pytest.fixture(scope="module")
def pretrained(corpus, tmp_path_factory) -> dict[str, Path]:
    """Runs of each family, 2 steps long."""
    folder = tmp_path_factory.mktemp("pretrained")
    for family in ("gpt", "bert", "t5"):
        made = train(
            family_recipe(folder, corpus, family), "schedule.steps=2", f"run.name={family}", "validation.rows=2"
        )
        assert made.returncode == 0, made.stderr
    return {family: folder / "runs" / family for family in ("gpt", "bert", "t5")}


def family_recipe(folder: Path, corpus: Path, family: str) -> Path:
    recipe = write_recipe(folder, corpus)
    extra = ", dropout: 0" if family == "bert" else ""
    recipe.write_text(re.sub(r"model:\n.*", f"model: {{family: {family}, {MODEL}{extra}}}", recipe.read_text()))
    return recipe


def example(task: str, draw: random.Random) -> dict:
    """One of a few thousand that a two-layer model can tell apart at once."""
    animal, tool = draw.choice(ANIMALS), draw.choice(TOOLS)
    number, words = (
        draw.randrange(5),
        " ".join(draw.choices(["the", "model", "reads", "a", "row", "of", "tokens"], k=3)),
    )
    kind = draw.choice(["animal", "tool"])
    noun = animal if kind == "animal" else tool
    match task:
        case "pair":
            second = draw.choice([animal, tool])
            return {
                "text": f"{words} {animal}",
                "second": f"{second} {words}",
                "label": "yes" if second == animal else "no",
            }
        case "regression":
            return {"text": f"{words} {'row ' * number}", "label": number}
        case "token_classification":
            if kind == "animal":
                return {"text": [*words.split(), animal, "one"], "label": ["O", "O", "O", "B-A", "I-A"]}
            return {"text": [tool, *words.split()], "label": ["B-T", "O", "O", "O"]}
        case "relation":
            return {"text": f"[E1]{words}[/E1] {'eats' if kind == 'animal' else 'uses'} [E2]{noun}[/E2]",
                    "label": "eats" if kind == "animal" else "uses"}  # fmt: skip
        case "seq2seq" | "instruction":
            return {"text": f"{words} {noun}? ", "label": noun}
    return {"text": f"{words} {noun}", "label": kind}


def write_examples(path: Path, task: str, count: int = 64) -> Path:
    draw = random.Random(1)
    path.write_text("".join(json.dumps(example(task, draw)) + "\n" for _ in range(count)))
    return path


def finetune_recipe(folder: Path, task: str, source: Path) -> Path:
    family, settings, fields = TASKS[task]
    examples = write_examples(folder / f"{task}.jsonl", task)
    recipe = folder / f"{task}.yaml"
    recipe.write_text(f"""# A task.
run: {{folder: {folder}/runs, start_from: {source}}}
data: {{examples: {{train: {examples}, valid: {examples}{fields}}}, row_length: 48}}
model: {{family: {family}, {MODEL}{", dropout: 0" if family == "bert" else ""}}}
objective: {{name: {OBJECTIVE.get(task, task)}, {settings}}}
batch: {{global_batch_size: 16, micro_batch_size: 16}}
optimizer: {{lr: 5e-3}}
schedule: {{steps: 120, warmup_steps: 4}}
engine: {{precision: fp32, compile: 'off'}}
checkpoint: {{every_steps: 1000}}
validation: {{every_steps: 60}}
monitor: {{peak_tflops: 0.1, sample_tokens: 0, tensorboard: false}}
""")
    return recipe


@pytest.mark.parametrize("task", TASKS)
def test_each_task_overfits_64_examples(pretrained, tmp_path, task):
    recipe = finetune_recipe(tmp_path, task, pretrained[TASKS[task][0]])
    run = train(recipe)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    last = [record for record in metrics(tmp_path / "runs" / task) if "validation_loss" in record][-1]
    if task in ("seq2seq", "instruction"):
        assert last["validation_loss"] <= 0.05
    elif task == "regression":
        assert last["validation_pearson"] >= 0.99
    else:
        assert last["validation_accuracy"] == last["validation_f1"] == 1.0
