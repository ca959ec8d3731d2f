"""The recipe that `python -m tasks finetune` writes: what it takes from the examples, and what it refuses."""

import json
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest

import data.example_table
from config import RunConfig, load_recipe
from data.training import open_training
from tasks.__main__ import main
from tests.labelled import write_examples
from tests.model.tiny import tiny_config, tiny_t5
from tests.tasks.trained import save_folder, tiny_trained

SIZES = dict(vocab_size=320, max_positions=128)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Hugging Face folders of models that read bytes."""
    configs = {"bert": tiny_config("bert", **SIZES), "gpt": tiny_config("llama", **SIZES), "t5": tiny_t5(**SIZES)}
    folder = tmp_path_factory.mktemp("models")
    return {name: save_folder(tiny_trained(config), folder / name) for name, config in configs.items()}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Recipes and runs lie in the test's own folder."""
    monkeypatch.chdir(tmp_path)


def write(task: str, model: Path, examples: Path | str, *options: object, valid: Path | str = "") -> int:
    files = ("--train", examples, "--valid", valid or examples, "--write-only")
    return main(["finetune", task, *map(str, (model, *files, *options))])


def written(*arguments: object, recipe: str = "r.yaml") -> RunConfig:
    assert write(*arguments, "--recipe", recipe) == 0
    return load_recipe(recipe)


def refused(capsys, *arguments: object, **files: object) -> str:
    assert write(*arguments, **files) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not list(Path().glob("*.yaml")), "nothing is left behind"
    return error


@pytest.mark.parametrize(
    ("task", "train", "valid", "message"),
    [
        ("classification", "text,label\na,x\nb,y\n", "text,label\na,z\n", "valid.csv:2: label 'z' is none of the 2 labels"),
        ("classification", "text,label\na,x\nb\n", "text,label\na,x\n", "train.csv:3: 1 columns, but the header has 2"),
        ("classification", "text,label\na,x\nb,y\n", "words,label\na,x\n", "valid.csv:2: has no field 'text', only words, label"),
        ("classification", "text,label\na,x\n,y\n", "text,label\na,x\n", "train.csv:3: text is empty: fill it in"),
        ("classification", "text,label\na,x\nb,\n", "text,label\na,x\n", "train.csv:3: label is empty: fill it in"),
        ("classification", "text,label\na,x\nb,x\n", "text,label\na,x\n", "train.csv: all labels are 'x', and there is nothing to tell apart"),
        ("classification", "text,label\n", "text,label\na,x\n", "train.csv: holds no examples"),
        ("classification", "text,label\na,x\nb,y\n", "text,label\n", "valid.csv: holds no examples"),
        ("regression", "text,label\na,1\nb,2\n", "text,label\na,two\n", "valid.csv:2: label is 'two', not a number"),
        ("regression", "text,label\na,1\nb,1\n", "text,label\na,1\n", "train.csv: all labels are 1.0, and there is nothing to tell apart"),
        ("regression", "text,label\na,1\nb,-1e300\n", "text,label\na,1\n", "train.csv:3: label is -1e+300, which cannot be learned"),
        ("relation", "text,label\n[E1]a[/E1] [E2]b[/E2],x\nb,y\n", "text,label\n", "train.csv:3: [E1] stands 0 times"),
        ("classification", f"text,label\n{'word ' * 99},x\nb,y\n", "text,label\na,x\n", "leaves room for 126: set data.examples.truncate=true"),
        ("seq2seq", "text,label\na,x\n", "text,label\na,x\n", "is a model of family bert, and seq2seq is for family t5"),
    ],
)  # fmt: skip
def test_wrong_examples_are_named_by_file_and_line(models, capsys, task, train, valid, message):
    for name, text in (("train", train), ("valid", valid)):
        Path(f"{name}.csv").write_text(text)
    assert message in refused(capsys, task, models["bert"], "train.csv", valid="valid.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EU B-ORG\nrejects O\n\nPeter NNP B-PER\n", "train.conll:4: 3 columns, expected 2 as in the lines above"),
        ("EU I-ORG\nrejects O\n", "train.conll:1: I-ORG begins an entity, after O"),
        ("EU S-ORG\nNew B-LOC\nYork E-LOC\n", "objective.labels has E-LOC beside tags that begin with B-"),
    ],
)
def test_tags_that_are_not_iob2_are_refused(models, capsys, text, message):
    Path("train.conll").write_text(text)
    error = refused(capsys, "token_classification", models["bert"], "train.conll")
    assert message in error and ".draft" not in error


def test_iob1_is_read_if_asked_to_and_other_tags_are_labels(models):
    Path("train.conll").write_text("EU I-ORG\nPeter B-ORG\nrejects O\n")
    config = written("token_classification", models["bert"], "train.conll", "--tags", "iob1")
    assert config.objective.labels == ("O", "B-ORG") and config.data.examples.tags == "iob1"
    Path("train.conll").write_text("EU NOUN\nrejects VERB\n")
    config = written("token_classification", models["bert"], "train.conll", recipe="words.yaml")
    assert config.objective.labels == ("NOUN", "VERB") and not config.objective.has_entities


@pytest.mark.parametrize("task", ["classification", "token_classification"])
def test_several_labels_are_none(models, capsys, task):
    """A list for a text, a list for a word."""
    example = {"text": ["a", "b"], "label": [["x"], "y"]} if "token" in task else {"text": "a", "label": ["x", "y"]}
    Path("train.jsonl").write_text(json.dumps(example) + "\n")
    message = refused(capsys, task, models["bert"], "train.jsonl")
    assert "train.jsonl:1: ['x'" in message and "is no label: give each example" in message
    Path("train.jsonl").write_text('{"text": ["a"], "label": 5}\n{"text": ["a"], "label": 6}\n')
    message = refused(capsys, task, models["bert"], "train.jsonl")
    assert ("no list of tags" if "token" in task else "text is list, not text") in message


def test_labels_stay_what_they_are(models):
    """Whatever YAML 1.1 or 1.2 would make of them."""
    labels = [
        "no",
        "1e5",
        "0o17",
        "null",
        "~",
        "a: b",
        "über",
        "日本",
        "#x",
        "10",
        "9",
        "true",
        " a ",
        "a\u2028b",
        "a\nb",
        "😀",
        "a\x85b",
    ]
    lines = [json.dumps({"text": "a", "label": label}, ensure_ascii=False) + "\n" for label in labels]
    Path("train.jsonl").write_text("".join(lines), encoding="utf-8")
    config = written("classification", models["bert"], "train.jsonl", "--balanced")
    assert sorted(config.objective.labels) == sorted(labels) and config.objective.class_weights == (1.0,) * len(labels)


def test_numbers_of_any_size_have_their_mean_and_spread(models):
    numbers = [1.25e-9, 3.5e-9, -2e-9, 8e-9]
    Path("train.jsonl").write_text("".join(json.dumps({"text": "a", "label": number}) + "\n" for number in numbers))
    objective = written("regression", models["bert"], "train.jsonl").objective
    assert (objective.mean, objective.scale) == pytest.approx((fmean(numbers), pstdev(numbers)), rel=1e-5)


def test_rows_and_steps_are_those_that_the_examples_need(models, tmp_path):
    examples = write_examples(tmp_path / "train.jsonl", "seq2seq", count=40)

    def made(task: str, model: str, *options: str) -> RunConfig:
        made.count = getattr(made, "count", 0) + 1
        return written(task, models[model], examples, "--epochs", 2, *options, recipe=f"{made.count}.yaml")

    plain = made("seq2seq", "t5")
    assert plain.data.row_length == 32 and 5 < plain.objective.target_length < 32
    assert (plain.batch.global_batch_size, plain.schedule.steps, plain.run.name) == (32, 3, "1"), "2 x 40 rows"
    assert plain.validation.every_steps == plain.checkpoint.every_steps == 2
    own = made("seq2seq", "t5", "batch.global_batch_size=4", "batch.micro_batch_size=2")
    assert (own.batch.micro_batch_size, own.schedule.steps) == (2, 2 * 10)
    packed = made("instruction", "gpt")
    assert packed.data.row_length == 128 == packed.model.max_positions
    assert 1 < packed.batch.global_batch_size < 20 and packed.schedule.steps == 3
    alone = made("instruction", "gpt", "objective.packing=false")
    assert (alone.batch.global_batch_size, alone.schedule.steps) == (32, 3)
    # As many as without packing: all rows, which are fewer, are read twice in one step.
    asked = made("instruction", "gpt", "batch.global_batch_size=32")
    assert (asked.batch.global_batch_size, asked.schedule.steps) == (32, 1)
    short = made("seq2seq", "t5", "data.row_length=128")
    assert (short.data.row_length, short.batch.micro_batch_size) == (128, 32)


@pytest.mark.parametrize(
    ("task", "family", "kind"),
    [
        ("classification", "bert", "pair"),
        ("regression", "gpt", "regression"),
        ("seq2seq", "t5", "seq2seq"),
        ("instruction", "gpt", "conversation"),
    ],
)
def test_examples_are_encoded_once(models, tmp_path, monkeypatch, task, family, kind):
    """Training finds what the command has encoded, and it is what training itself would have encoded."""
    train, valid = (write_examples(tmp_path / f"{name}.jsonl", kind, count=9) for name in ("train", "valid"))
    pair = ("--pair", "second") if kind == "pair" else ()
    assert write(task, models[family], train, *pair, "--recipe", "r.yaml", valid=valid) == 0
    config = load_recipe("r.yaml")
    with monkeypatch.context() as patched:
        patched.setattr(data.example_table, "encode_table", lambda *_: pytest.fail("encoded again"))
        stream, tokenizer = open_training(config, 0, 1)
    kept = list(Path("runs/.examples").iterdir())
    assert len(kept) == 1, "both files have the same content"
    again = data.example_table.encode_table(str(train), config, tokenizer)
    with np.load(kept[0]) as arrays:
        for part in data.example_table.PARTS:
            assert arrays[part].dtype == getattr(again, part).values.dtype
            assert np.array_equal(arrays[part], getattr(again, part).values)
    stream.step(0)


def test_conversations_are_found_under_any_name(models, tmp_path, capsys):
    examples = write_examples(tmp_path / "train.jsonl", "conversation", count=4)
    assert written("instruction", models["gpt"], examples).data.examples.messages == "messages"
    renamed = tmp_path / "talks.jsonl"
    renamed.write_text(examples.read_text().replace('"messages"', '"talk"'))
    found = written("instruction", models["gpt"], renamed, "--text", "talk", recipe="talks.yaml").data.examples
    assert (found.messages, found.text, found.label) == ("talk", "text", "label")
    assert write("instruction", models["gpt"], examples, "--label", "answer") == 2
    assert "--label answer: all answers of a conversation in messages are learned" in capsys.readouterr().err


def test_the_recipe_has_the_adapter_and_its_schedule(models, tmp_path):
    examples = write_examples(tmp_path / "examples.jsonl", "classification")
    command = ("classification", models["bert"], examples)
    assert write(*command, "--epochs", 10) == write(*command, "--epochs", 10, "--adapter", "adalora") == 0
    full, adapted = (load_recipe(f"classification-bert{name}.yaml") for name in ("", "-adalora"))
    assert full.adapter.name == "none" and adapted.adapter.name == "adalora"
    assert adapted.run.name == "classification-bert-adalora"
    assert (adapted.schedule.steps, adapted.adapter.initial_steps, adapted.adapter.final_steps) == (20, 2, 10)
    assert adapted.optimizer.lr == pytest.approx(10 * full.optimizer.lr, rel=0.1)
    own = written(*command, "--adapter", "adalora", "schedule.steps=100", "adapter.initial_steps=7")
    assert (own.schedule.steps, own.schedule.warmup_steps) == (100, 10)
    assert (own.adapter.initial_steps, own.adapter.final_steps) == (7, 50)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("regression", ("--balanced",), "--balanced weighs labels, and regression has none: leave it out"),
        ("classification", ("--tags", "iob1"), "--tags iob1 is for token_classification"),
        ("classification", ("adapter.name=lora",), "adapter.name: give --adapter instead"),
        ("classification", ("data.examples.label=kind",), "data.examples.label: give --label instead"),
        ("classification", ("--epochs", "0"), "--epochs 0: every example has to be learned from at least once"),
        ("classification", ("--epochs", "4", "schedule.steps=9"), "--epochs 4 and schedule.steps both say how long"),
        ("classification", ("--recipe", "mine"), "--recipe mine: a recipe is a .yaml file"),
        ("classification", ("optimizer.lrr=1",), "command line: optimizer.lrr=1: unknown setting; did you mean lr?"),
        ("classification", ("objective.labels=[a, a]",), "command line: objective.labels=[a, a]: objective: labels names a label twice"),
        ("classification", ("--pair", "text", "objective.name=relation"), "objective.name: give TASK instead"),
        ("relation", ("--pair", "text"), "r.yaml: data.examples.pair: objective.name relation reads one text"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(models, tmp_path, capsys, task, options, message):
    examples = write_examples(tmp_path / "examples.jsonl", task)
    recipe = () if "--recipe" in options else ("--recipe", "r.yaml")
    assert message in refused(capsys, task, models["bert"], examples, *recipe, *options)


def test_a_recipe_may_lie_in_a_new_folder_and_is_kept_if_it_was_edited(models, tmp_path, capsys):
    examples = write_examples(tmp_path / "examples.jsonl", "classification")
    command = ("classification", models["bert"], examples, "--recipe", "new/folder/r.yaml")
    assert write(*command) == write(*command) == 0
    recipe = Path("new/folder/r.yaml")
    edited = recipe.read_text() + "\n# mine\n"
    recipe.write_text(edited)
    assert write(*command) == 2 and "exists with other settings" in capsys.readouterr().err
    assert recipe.read_text() == edited
    assert write(*command[:3], "--recipe", "r.yaml/below.yaml") == 0
    assert write(*command[:3], "--recipe", f"{recipe}/below.yaml") == 2
    assert "r.yaml" in capsys.readouterr().err
