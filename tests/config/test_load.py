"""Recipes: what loads, what it becomes, and the exact message for everything that is wrong."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from config import ConfigError, RunConfig, dump_recipe, load_recipe
from config.load import apply_overrides, validate
from config.recipe_yaml import parse_yaml
from config.section import Section

ROOT = Path(__file__).parents[2]
RECIPE = """\
data:
  datasets: [{path: corpora/a}, {path: corpora/b, weight: 2}]
  row_length: 64
model:
  vocab_size: 256
  num_layers: 2
  hidden_size: 64
  num_heads: 4
  max_positions: 64
batch:
  global_batch_size: 8
  micro_batch_size: 2
optimizer:
  lr: 3e-4
schedule:
  steps: 10
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str = RECIPE, *overrides: str) -> RunConfig:
    Path("my.yaml").write_text(text, encoding="utf-8")
    return load_recipe("my.yaml", overrides)


def message(text: str = RECIPE, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(text, *overrides)
    return str(error.value)


# What is written: (line of the recipe, what it is replaced by, message)
WRONG = [
    ("  lr: 3e-4", "  lrr: 3e-4", "my.yaml:14: optimizer.lrr: unknown setting; did you mean lr?"),
    ("  lr: 3e-4", "  lr: 3e-4\n  steps: 5", "my.yaml:15: optimizer.steps: unknown setting; steps belongs to schedule"),
    ("  lr: 3e-4", "  lr: 3e-4\n  lr: 1", "my.yaml:15: optimizer.lr: set twice, first in line 14"),
    ("  lr: 3e-4", "  lr: -1", "my.yaml:14: optimizer.lr: must be greater than 0, not -1"),
    ("  lr: 3e-4", "  lr: .inf", "my.yaml:14: optimizer.lr: expected a finite number, not inf"),
    ("  lr: 3e-4", '  lr: "3e-4"', "my.yaml:14: optimizer.lr: expected a number, not the text '3e-4': leave the quotes out"),
    ("  lr: 3e-4", "  weight_decay: 0", "my.yaml:13: optimizer.lr: missing (Peak learning rate)"),
    ("  lr: 3e-4", "  lr: 1\n  beta1: 2", "my.yaml:15: optimizer.beta1: must be at most 1, not 2"),
    ("  lr: 3e-4", "  lr: 1\n  name: adam", "my.yaml:15: optimizer.name: expected adamw, muon, sgd, rmsprop or lion, not the text 'adam'; did you mean adamw?"),
    ("  lr: 3e-4", "  <<: {lr: 1}", "my.yaml:13: optimizer.lr: missing (Peak learning rate)\nmy.yaml:14: optimizer: merge keys (<<) are not supported; write the settings out"),
    ("  lr: 3e-4", "  [a]: 1\n  lr: 1", "my.yaml:14: optimizer: a setting's name must be one word"),
    ("  lr: 3e-4", "  lr: !!int eight", "my.yaml:14: optimizer.lr: 'eight' cannot be read as !!int"),
    ("  lr: 3e-4", "  lr: !new 3", "my.yaml:14: optimizer.lr: unknown tag !new"),
    ("  steps: 10", "  steps: 1.5", "my.yaml:16: schedule.steps: expected a whole number, not 1.5"),
    ("  steps: 10", "  steps: true", "my.yaml:16: schedule.steps: expected a whole number, not true"),
    ("  steps: 10", "  steps:", "my.yaml:16: schedule.steps: expected a whole number, not empty"),
    ("  steps: 10", "  steps: [10]", "my.yaml:16: schedule.steps: expected a whole number, not a list"),
    ("  steps: 10", "  steps: 10\n  warmup_steps: 11", "my.yaml:17: schedule.warmup_steps 11 is more than schedule.steps 10"),
    ("  steps: 10", "  steps: 10\nmodle: {}", "my.yaml:17: modle: unknown section; did you mean model?"),
    ("  steps: 10", "  steps: 10\nseed: 1", "my.yaml:17: seed: unknown setting; seed belongs to run"),
    ("  steps: 10", "  steps: 10\nrun: {name: 42}", "my.yaml:17: run.name: expected text, not 42: put it in quotes"),
    ("  row_length: 64", "  row_length: 128", "my.yaml:3: data.row_length 128 is longer than model.max_positions 64"),
    ("  row_length: 64", "  document_masking: no", "my.yaml:3: data.document_masking: expected true or false, not the text 'no': write false"),
    ("  datasets: [{path: corpora/a}, {path: corpora/b, weight: 2}]", "  datasets: []", "my.yaml:2: data.datasets is what objective.name causal_lm learns from: give it"),
    ("  datasets: [{path: corpora/a}, {path: corpora/b, weight: 2}]", "  datasets: corpora/a", "my.yaml:2: data.datasets: expected a list, not the text 'corpora/a'"),
    ("  datasets: [{path: corpora/a}, {path: corpora/b, weight: 2}]", "  datasets:\n    - path: a\n    - paht: b", "my.yaml:4: data.datasets.1.paht: unknown setting; did you mean path?"),
    ("  row_length: 64", "  row_length: 64\n  mixture_schedule: [{from_tokens: 9, weights: [1]}]", "my.yaml:4: a data.mixture_schedule phase has 1 weights for 2 datasets"),
    ("  row_length: 64", "  row_length: 64\n  mixture_schedule: [{from_tokens: 9, weights: [1, 1]}, {from_tokens: 9, weights: [1, 0]}]", "my.yaml:4: data: mixture_schedule follows the run, but its from_tokens 9 is followed by 9: order them"),
    ("  row_length: 64", "  row_length: 64\n  mixture_schedule: [{from_tokens: 9, weights: [0, 0]}]", "my.yaml:4: data.mixture_schedule.0: weights are all 0, so that there is nothing to read: give a dataset a share"),
    ("  num_heads: 4", "  num_heads: 4\n  family: gtp", "my.yaml:9: model.family: expected gpt, bert, t5, not the text 'gtp'; did you mean gpt?"),
    ("  num_heads: 4", "  num_heads: 4\n  family: [gpt]", "my.yaml:9: model.family: expected gpt, bert, t5, not a list"),
    ("  num_heads: 4", "  num_heads: 3", "my.yaml:7: model: hidden_size 64 is not a multiple of num_heads 3: change one of them or set head_size"),
    ("  num_heads: 4", "  num_heads: 4\n  preset: [a]", "my.yaml:9: model.preset: expected gpt2, llama, qwen3 or mistral, not a list"),
    ("  num_heads: 4", "  num_heads: 4\n  familly: gpt", "my.yaml:9: model.familly: unknown setting; did you mean family?"),
    ("batch:\n  global_batch_size: 8\n  micro_batch_size: 2", "batch: 8", "my.yaml:10: batch: expected a section of settings, not 8"),
    ("batch:\n  global_batch_size: 8\n  micro_batch_size: 2", "batch:\n  global_batch_size:8", "my.yaml:10: batch: expected a section of settings, not the text 'global_batch_size:8'; put a space after the colon"),
    ("batch:\n  global_batch_size: 8\n  micro_batch_size: 2", "", "my.yaml: batch: missing"),
    ("batch:\n  global_batch_size: 8\n  micro_batch_size: 2", "batch:", "my.yaml:10: batch.global_batch_size: missing (Rows in one optimiser step, over all ranks)\nmy.yaml:10: batch.micro_batch_size: missing (Rows in one forward and backward pass of one rank)"),
    ("  micro_batch_size: 2", "  micro_batch_size: 2\nobjective: {name: classification, labels: [good]}", "my.yaml:13: objective.labels: needs at least 2 entries, not 1"),
    ("  micro_batch_size: 2", "\tmicro_batch_size: 2", "my.yaml:12:1: not valid YAML: indent with spaces, not with tabs"),
    ("  micro_batch_size: 2", "  micro_batch_size: {", "my.yaml:14:5: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got ':'"),
    ("  micro_batch_size: 2", "  micro_batch_size: 2\nrun: &a {name: *a}", "my.yaml:13: run.name: this alias contains itself"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "replacement", "expected"), WRONG, ids=[repr(w[1])[:40] for w in WRONG])
def test_wrong_recipe_gets_its_message(line, replacement, expected):
    assert RECIPE.count(line) == 1
    found = message(RECIPE.replace(line, replacement))
    assert found == expected


WRONG_OVERRIDES = [
    ("batch.micro_batch_size=eight", "expected a whole number, not the text 'eight'"),
    ("batch.micro_batch_sise=8", "unknown setting; did you mean micro_batch_size?"),
    ("lr=1", "unknown setting; lr belongs to optimizer"),
    ("--optimizer.lr=1", "--optimizer: unknown section; did you mean optimizer?"),
    ("foo", "expected section.key=value"),
    ("=5", "expected section.key=value"),
    ("model.num_layers.x=8", "model.num_layers is not a section, so it has no x"),
    ("data.datasets.7.path=x", "data.datasets is a list of 2; expected an index from 0, not 7"),
    ("data.datasets.first.path=x", "data.datasets is a list of 2; expected an index from 0, not first"),
    ("data.datasets.0.weight=two", "expected a number, not the text 'two'"),
    ("data.datasets=[{path: x, wait: 2}]", "data.datasets.0.wait: unknown setting; did you mean weight?"),
    ("run.name=[a", "not a valid value: while parsing a flow sequence, expected ',' or ']', but got '<stream end>'; put it in quotes"),
    ("run.name=a: b", "expected text, not a section"),
    ("run.start_from=", "expected text, not empty: write '' for none"),
    ("optimizer=", "optimizer.lr: missing (Peak learning rate)"),
    ("model=gpt", "expected a section of settings, not the text 'gpt'"),
    ("engine.compile=true", "expected auto, on or off, not true"),
    ("model.hidden_size=10", "model: hidden_size 10 is not a multiple of num_heads 4: change one of them or set head_size"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), WRONG_OVERRIDES, ids=[w[0] for w in WRONG_OVERRIDES])
def test_wrong_override_gets_its_message(override, expected):
    assert message(RECIPE, override) == f"command line: {override}: {expected}"


def test_all_problems_are_reported_at_once_in_reading_order():
    text = (
        RECIPE.replace("row_length", "row_lenght").replace("  lr: 3e-4", "  lr: fast").replace("steps: 10", "steps: 0")
    )
    assert message(text, "batch.micro_batch_size=0", "run.sed=1").split("\n") == [
        "my.yaml:3: data.row_lenght: unknown setting; did you mean row_length?",
        "my.yaml:14: optimizer.lr: expected a number, not the text 'fast'",
        "my.yaml:16: schedule.steps: must be greater than 0, not 0",
        "command line: batch.micro_batch_size=0: must be greater than 0, not 0",
        "command line: run.sed=1: unknown setting; did you mean seed?",
    ]


def test_an_override_that_mends_the_recipe_is_enough():
    assert load(RECIPE.replace("  lr: 3e-4", "  lr: fast"), "optimizer.lr=1").optimizer.lr == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "my.yaml: data: missing\n"),
        (b"- a\n- b\n", "my.yaml: expected a section of settings, not a list"),
        (b"\xff\xfe\x00", "my.yaml: not UTF-8 text (byte 0)"),
        (b"a: \x00", "my.yaml: not valid YAML: unacceptable character #x0000"),
        (b"a: 1\n---\nb: 2\n", "my.yaml:2:1: not valid YAML: expected a single document in the stream"),
    ],
)
def test_a_file_that_is_no_recipe(content, expected):
    Path("my.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_recipe("my.yaml", [])
    assert str(error.value).startswith(expected)


def test_unknown_recipe_names_the_closest_and_all():
    with pytest.raises(ConfigError, match=r"^gpt_debgu: no such recipe; did you mean gpt_debug\? .*gpt_quickstart"):
        load_recipe("gpt_debgu", [])
    with pytest.raises(ConfigError, match=r"^some/where.yaml: no such recipe"):
        load_recipe("some/where.yaml", [])
    Path("folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"^folder.yaml: Is a directory"):
        load_recipe("folder.yaml", [])


def test_a_name_and_its_file_name_find_the_same_recipe():
    assert load_recipe("gpt_debug", []) == load_recipe("gpt_debug.yaml", [])


# YAML 1.2.2, section 10.3.2, and thousands; what PyYAML alone reads otherwise is marked.
SCALARS = {
    "3e-4": 3e-4, "1E5": 1e5, ".5": 0.5, "1.": 1.0, "-.inf": -math.inf,  # text without a dot in YAML 1.1
    "no": "no", "on": "on", "Off": "Off", "yes": "yes",  # booleans in YAML 1.1
    "0o17": 15, "017": 17, "0x1F": 31, "+7": 7,  # 017 is 15 in YAML 1.1
    "1:30": "1:30", "2024-01-01": "2024-01-01", "0b11": "0b11",  # 90, a date and 3 in YAML 1.1
    "1_000": 1000, "12_345_678": 12345678, "2024_01": "2024_01",
    "~": None, "null": None, "": None, "true": True, "FALSE": False, "tRue": "tRue", '"8"': "8",
}  # fmt: skip


@pytest.mark.parametrize("text", SCALARS)
def test_scalars_are_read_as_yaml_1_2(text):
    value = parse_yaml(f"a: {text}", "x").values["a"]
    assert value == SCALARS[text] and type(value) is type(SCALARS[text])


def test_precedence_is_defaults_then_recipe_then_command_line():
    config = load(RECIPE, "optimizer.lr=1e-2", "data.datasets.0.path=x", "schedule.steps=20", "schedule.steps=1e1")
    assert (config.optimizer.beta2, config.batch.micro_batch_size) == (0.95, 2)
    assert config.optimizer.lr == 0.01
    assert config.schedule.steps == 10
    assert [d.path for d in config.data.datasets] == ["x", "corpora/b"]


def test_overrides_replace_append_and_make_sections():
    assert [d.weight for d in load(RECIPE, "data.datasets=[{path: x, weight: 3}]").data.datasets] == [3.0]
    assert [d.path for d in load(RECIPE, "data.datasets.2.path=c").data.datasets][2:] == ["c"]
    assert load(RECIPE, "engine.compile=on", "monitor.sample_prompt=a=b").monitor.sample_prompt == "a=b"


def test_an_anchor_is_as_good_as_its_value():
    text = RECIPE.replace("row_length: 64", "row_length: &T 64").replace("max_positions: 64", "max_positions: *T")
    assert load(text) == load()


def test_an_empty_section_keeps_its_defaults():
    assert load(RECIPE + "engine:\n") == load()


def test_run_name_is_the_recipes_unless_given():
    assert load().run.name == "my"
    assert load(RECIPE, "run.name=other").run.name == "other"


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        load().optimizer.lr = 1.0


def test_presets_fill_what_the_recipe_leaves_out():
    model = load(RECIPE, "model.preset=gpt2", "model.bias=false").model
    assert (model.position, model.tied_embeddings, model.bias) == ("learned", True, False)


TRICKY = st.sampled_from(
    ["3e-4", "no", "on", "0o17", "1_000", "null", "", " a", "a: b", "#", "[", "- x", "1:30", "é\n"]
)


@settings(max_examples=40, deadline=None)
@example(name="\x85", lr=1.0, steps=1)
@given(
    name=TRICKY | st.text(st.characters(exclude_categories=["Cs"])), lr=st.floats(1e-300, 1e300), steps=st.integers(1)
)
def test_a_dumped_recipe_loads_back_equal(name, lr, steps):
    config = load()
    changed = config.model_copy(
        update={
            "monitor": config.monitor.model_copy(update={"sample_prompt": name}),
            "optimizer": config.optimizer.model_copy(update={"lr": lr}),
            "schedule": config.schedule.model_copy(update={"steps": steps}),
        }
    )
    assert load(dump_recipe(changed)) == changed


def test_a_dumped_recipe_means_the_same_to_other_yaml_readers():
    config = load(RECIPE, "engine.compile=on", "monitor.sample_prompt=no")
    assert yaml.safe_load(dump_recipe(config)) == config.model_dump(mode="json")


class Cat(Section):
    family: Literal["cat"] = "cat"
    lives: int


class Dog(Section):
    family: Literal["dog"] = "dog"
    tricks: tuple[str, ...] = Field((), strict=False)


class Pets(Section):
    pet: Annotated[Cat | Dog, Field(discriminator="family")]
    friend: Cat | None = None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pet:\n  family: cat\n  live: 9", "x:3: pet.live: unknown setting; did you mean lives?"),
        ("pet:\n  family: dog\n  tricks: [1]", "x:3: pet.tricks.0: expected text, not 1: put it in quotes"),
        ("pet:\n  family: cow", "x:2: pet.family: expected cat, dog, not the text 'cow'"),
        ("pet: {family: dog}\nfriend:\n  lifes: 9", "x:3: friend.lifes: unknown setting; did you mean lives?"),
    ],
)
def test_messages_inside_unions_and_optional_sections(text, expected):
    document = parse_yaml(text, "x")
    apply_overrides(document, [])
    with pytest.raises(ConfigError) as error:
        validate(document, Pets)
    assert str(error.value) == expected


@pytest.mark.parametrize("arguments", ["'gpt_debug', []", "'gpt_debug', ['optimizer.lrr=1', 'batch.x=2']"])
def test_a_typo_is_reported_before_any_slow_import(arguments):
    code = f"""
import sys, time
from config import GroundworkError, load_recipe
try: load_recipe({arguments})
except GroundworkError as error: assert "lrr" in str(error)
slow = sorted({{"torch", "deepspeed", "numpy"}} & sys.modules.keys())
print(time.process_time(), slow)
"""
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True) for _ in range(3)]
    assert all(run.returncode == 0 and run.stdout.split()[1] == "[]" for run in runs), runs
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.5
