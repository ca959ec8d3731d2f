"""The recipe of a fine-tuning, from the model to start with and the examples to learn from."""

import argparse
from collections import Counter
from typing import Any

import yaml

from config import ConfigError, TransformerConfig
from config.objective_check import METRICS
from config.objective_schema import OBJECTIVES
from data.example_files import Record, read_records
from data.example_rows import MARKERS, label_name
from data.source import read_tokenizer
from data.specials import BERT, T5
from engine.start_from import open_source

ROW_LENGTH, BATCH_SIZE = 512, 32
LR_TIMES_WIDTH = 0.04
"""5e-5 for BERT base, as its authors chose for fine-tuning (arXiv:1810.04805, appendix A.3), and more for narrower models."""
NOT_WRITTEN = ("vocab_size", "family", "pooler")


def make_recipe(options: argparse.Namespace) -> str:
    """YAML of the whole recipe. Raises ConfigError if the model is of the wrong family, DataError if the examples cannot
    be read."""
    source = open_source(str(options.model))
    check_family(options.task, options.model, source.config)
    records = list(read_records(options.train))
    if not records:
        raise ConfigError(f"{options.train}: holds no examples")
    batch = min(BATCH_SIZE, len(records))
    epoch = -(-len(records) // batch)
    fields = {"text": options.text, "label": options.label} | ({"pair": options.pair} if options.pair else {})
    sections: dict[str, Any] = {
        "run": {"name": f"{options.task}-{options.model.resolve().name}", "start_from": str(options.model)},
        "data": {
            "examples": {"train": options.train, "valid": options.valid, **fields},
            "row_length": min(source.config.max_positions, ROW_LENGTH),
        },
        "model": model_section(source.config, vocabulary(options, source.config)),
        "objective": {"name": options.task, **objective_section(options, records)},
        "batch": {"global_batch_size": batch, "micro_batch_size": batch},
        "optimizer": {"lr": float(f"{LR_TIMES_WIDTH / source.config.hidden_size:.1g}"), "weight_decay": 0.01},
        "schedule": {
            "steps": options.epochs * epoch,
            "name": "linear",
            "warmup_steps": options.epochs * epoch // 10,
            "min_lr_ratio": 0.0,
        },
        "checkpoint": {"every_steps": epoch},
        "validation": {"every_steps": epoch, "metric": METRICS.get(options.task, ("loss",))[-1], "keep_best": True},
    }
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=120)


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


def objective_section(options: argparse.Namespace, records: list[Record]) -> dict[str, Any]:
    """What the examples say about the objective: the labels there are, or the mean and spread of numbers."""
    if options.task in ("seq2seq", "instruction"):
        return {}
    values = [field(record, options.label) for record in records]
    if options.task == "regression":
        numbers = [number(record, value) for record, value in zip(records, values, strict=True)]
        mean = sum(numbers) / len(numbers)
        spread = (sum((one - mean) ** 2 for one in numbers) / len(numbers)) ** 0.5
        return {"mean": round(mean, 6), "scale": round(spread, 6) or 1.0}
    flat = [label for value in values for label in (value if isinstance(value, list) else [value])]
    counts = Counter(map(label_name, flat))
    labels = sorted(counts, key=lambda name: (name != "O", len(name) if name.isdecimal() else 0, name))
    if len(labels) < 2:
        raise ConfigError(
            f"{options.train}: all labels are {labels[0]!r}, and there is nothing to tell apart: add others"
        )
    section: dict[str, Any] = {"labels": labels}
    if options.balanced:
        section["class_weights"] = [round(len(flat) / (len(labels) * counts[label]), 4) for label in labels]
    return section


def field(record: Record, name: str) -> Any:
    where, fields = record
    if fields.get(name) is None:
        raise ConfigError(f"{where}: has no field {name!r}, only {', '.join(fields)}: give --label the name of one")
    return fields[name]


def number(record: Record, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(
            f"{record[0]}: its label is {value!r}, and regression learns numbers: mend the line"
        ) from None
