"""The recipe of a fine-tuning, from the model to start with and the examples to learn from."""

import argparse
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from config import ConfigError, DataError, RunConfig, TransformerConfig, load_recipe
from config.adapter_schema import AdaLoRA
from config.objective_check import METRICS
from config.objective_schema import OBJECTIVES
from config.supervised_schema import Instruction, SequenceToSequence
from data.chat import find_template
from data.example_fields import label_name, number_of, value_of
from data.example_files import Record, read_records
from data.example_rows import MARKERS
from data.example_table import ExampleTable, pack
from data.labelled import GRANULE
from data.source import read_tokenizer
from data.specials import BERT, T5
from data.tags import iob2
from engine.start_from import Source, open_source

BATCH_SIZE, TOKENS_AT_ONCE, PACKED_LENGTH = 32, 16_384, 512
"""Examples in a step; tokens in a micro-batch, at most; tokens in a row of several examples, at least."""
DRAFT_STEPS = 10**9
"""Of a recipe whose examples have yet to be counted: more than any setting in steps that the user gives."""
LR_TIMES_WIDTH = 0.04
"""5e-5 for BERT base, as its authors chose for fine-tuning (arXiv:1810.04805, appendix A.3), and more for narrower models."""
ADAPTER_LR_RATIO = 10
"""Between the rates of LoRA and of all weights: 5e-4 for RoBERTa base (arXiv:2106.09685, table 9)."""
MESSAGES = "messages"
"""The field of conversations, as TRL and its data sets name it."""
NOT_WRITTEN = ("vocab_size", "family", "pooler")

Sections = dict[str, dict[str, Any]]


def draft(options: argparse.Namespace) -> Sections:
    """A recipe that has yet to be fitted to the lengths of the examples.

    Raises ConfigError if the model is of the wrong family, DataError if the examples cannot be read.
    """
    source = open_source(str(options.model))
    check_family(options.task, options.model, source.config)
    first = next(read_records(options.train), None)
    if first is None:
        raise DataError(f"{options.train}: holds no examples")
    most = source.config.max_positions
    written = {"target_length": most} if options.task == "seq2seq" else {}
    return {
        "run": {"start_from": str(options.model)},
        "data": {
            "examples": {"train": options.train, "valid": options.valid, **fields(options, first, source)},
            "row_length": most,
        },
        "model": model_section(source.config, vocabulary(options, source.config)),
        "objective": {"name": options.task, **written, **objective_section(options)},
        **({"adapter": {"name": options.adapter}} if options.adapter else {}),
        "batch": {"global_batch_size": BATCH_SIZE, "micro_batch_size": 1},
        "optimizer": {"lr": learning_rate(options, source.config), "weight_decay": 0.01},
        "schedule": {"steps": DRAFT_STEPS, "name": "linear", "warmup_steps": 0, "min_lr_ratio": 0.0},
        "checkpoint": {"every_steps": 1},
        "validation": {"every_steps": 1, "metric": METRICS.get(options.task, ("loss",))[-1], "keep_best": True},
    }


def fit(
    sections: Sections, config: RunConfig, train: ExampleTable, valid: ExampleTable, given: set[str], epochs: int
) -> Sections:
    """The recipe with rows as long as the longest example, and as many steps as the epochs take.

    `config` is the draft with the user's own settings, named in `given`, which win.
    """
    objective, length, batch = config.objective, config.data.row_length, config.batch.global_batch_size
    packed = isinstance(objective, Instruction) and objective.packing
    if "data.row_length" not in given:
        read = [table.source if isinstance(objective, SequenceToSequence) else table.ids for table in (train, valid)]
        longest = max(int(lists.lengths.max()) for lists in read)
        length = min(-(-max(longest, PACKED_LENGTH * packed) // GRANULE) * GRANULE, length)
    rows = len(pack(train.ids.lengths - 1, length).lengths) if packed else len(train)
    if "batch.global_batch_size" not in given:
        batch = max(1, min(rows, round(BATCH_SIZE * rows / len(train))))
    fits = (size for size in range(1, batch + 1) if batch % size == 0 and size * length <= TOKENS_AT_ONCE)
    epoch = -(-rows // batch)
    steps = config.schedule.steps if "schedule.steps" in given else -(-epochs * rows // batch)
    fitted: Sections = {
        "data": {"row_length": length},
        "batch": {"global_batch_size": batch, "micro_batch_size": max(fits, default=1)},
        "schedule": {"steps": steps, "warmup_steps": steps // 10},
        "checkpoint": {"every_steps": epoch},
        "validation": {"every_steps": epoch},
    }
    if isinstance(config.adapter, AdaLoRA):  # its authors' shares of a run (arXiv:2303.10512)
        fitted["adapter"] = {"initial_steps": steps // 10, "final_steps": steps // 2}
    if isinstance(objective, SequenceToSequence):
        fitted["objective"] = {"target_length": max(int(table.ids.lengths.max()) for table in (train, valid))}
    return {name: values | fitted.get(name, {}) for name, values in sections.items()}


def name_of(options: argparse.Namespace) -> str:
    """Of the recipe, and so of the run, if the user gives it none."""
    return "-".join([options.task, options.model.resolve().name, *filter(None, [options.adapter])])


def learning_rate(options: argparse.Namespace, config: TransformerConfig) -> float:
    ratio = ADAPTER_LR_RATIO if options.adapter else 1
    return float(f"{ratio * LR_TIMES_WIDTH / config.hidden_size:.1g}")


def check_family(task: str, model: Any, config: TransformerConfig) -> None:
    if task not in OBJECTIVES[config.family]:
        families = " or ".join(family for family, names in OBJECTIVES.items() if task in names)
        raise ConfigError(
            f"{model} is a model of family {config.family}, and {task} is for family {families}: give one of these"
        )


def model_section(config: TransformerConfig, vocab_size: int) -> dict[str, Any]:
    """The settings in which a model differs from its preset."""
    values = config.model_dump(mode="json")
    required = {name: values[name] for name, field in type(config).model_fields.items() if field.is_required()}
    preset = type(config)(**required, preset=values["preset"]).model_dump(mode="json")
    own = {
        n: v for n, v in values.items() if n not in NOT_WRITTEN and (v != preset[n] or n in required or n == "preset")
    }
    return {"family": config.family, "vocab_size": vocab_size, **own}


def vocabulary(options: argparse.Namespace, config: TransformerConfig) -> int:
    """Rows of the embedding: the model's, and those that new special tokens need."""
    names = {"bert": BERT, "t5": T5}.get(config.family, ())
    tokenizer = read_tokenizer(str(options.model)).with_special_tokens(names)
    if options.task == "relation":
        tokenizer = tokenizer.with_special_tokens(MARKERS)
    return max(config.vocab_size, tokenizer.vocab_size)


def fields(options: argparse.Namespace, first: Record, source: Source) -> dict[str, str]:
    """Names of the examples' fields and what has to be known to read them."""
    pair = {"pair": options.pair} if options.pair else {}
    talk = options.text if options.text in first[1] else MESSAGES
    if options.task == "instruction" and talk in first[1] and not isinstance(first[1].get(options.text), str):
        if options.label != "label":
            raise ConfigError(
                f"--label {options.label}: all answers of a conversation in {talk} are learned; leave it out"
            )
        template = chat_template(source.path)
        return {"messages": talk, **({"chat_template": template} if template else {}), **pair}
    named = {"text": options.text, "label": options.label, **pair}
    return {**named, "tags": options.tags} if options.task == "token_classification" else named


def chat_template(folder: Path) -> str | None:
    """Of a folder of transformers or of a checkpoint that has learned conversations."""
    recipe = folder / "recipe.yaml"
    examples = load_recipe(str(recipe)).data.examples if recipe.is_file() else None
    return examples.chat_template if examples else find_template(folder)


def objective_section(options: argparse.Namespace) -> dict[str, Any]:
    """What the training examples say about the objective: the labels there are, or the mean and spread of numbers."""
    if options.task in ("seq2seq", "instruction"):
        return {}
    if options.task == "regression":
        numbers = [number_of(record, options.label) for record in read_records(options.train)]
        check_different(options.train, set(numbers))
        return {"mean": float(f"{fmean(numbers):.6g}"), "scale": float(f"{pstdev(numbers):.6g}")}
    counts: Counter[str] = Counter()
    for record in read_records(options.train):
        where, value = record[0], value_of(record, options.label)
        of_words = options.task == "token_classification" and isinstance(value, list)
        counts.update(label_name(where, one) for one in (iob2(where, value, options.tags) if of_words else [value]))
    labels = sorted(counts, key=lambda name: (name != "O", len(name) if name.isdecimal() else 0, name))
    check_different(options.train, labels)
    section: dict[str, Any] = {"labels": labels}
    if options.balanced:
        section["class_weights"] = [round(counts.total() / (len(labels) * counts[label]), 4) for label in labels]
    return section


def check_different(path: str, labels: Collection[Any]) -> None:
    if len(labels) < 2:
        raise ConfigError(
            f"{path}: all labels are {next(iter(labels))!r}, and there is nothing to tell apart: add others"
        )
