"""What a search is asked, checked before anything starts, and its folder, where the same command finds it again.

runs/NAME/
    recipe.yaml          what all trials train from, their own settings apart
    search.db            Optuna's storage, unless --storage names another
    trial_0000/ …        the runs, and trial_0000.log … what they print
    best.yaml, search.json, search.html, importance.png
"""

import argparse
import json
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config import ConfigError, RunConfig, compare, load_recipe
from config.load import display_path, merged_recipe
from data.files import write_atomically
from tasks.search.space import Axis, check_space, read_space

TRAIN = Path(__file__).parents[2] / "train.py"
DEFAULT_TRIALS, DEFAULT_REDUCTION = 20, 3


@dataclass(frozen=True)
class Question:
    config: RunConfig
    """Of the recipe with the command line's overrides."""
    typed: str
    """The recipe as it was typed."""
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    folder: Path
    storage: str
    trials: int
    sampler: str
    seed: int
    pruner: str
    reduction: int
    min_steps: int
    """No trial is pruned before. Half a run by default: what leads early is often not what leads in the end (docs/search.md)."""
    value: str
    """best or last: which of a trial's validations counts."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def metric(self) -> str:
        """Name in metrics.jsonl."""
        return f"validation_{self.config.validation.metric}"

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        return "minimize" if self.metric == "validation_loss" else "maximize"

    @property
    def storage_shown(self) -> str:
        """Without a password."""
        return re.sub(r"(://[^:/@]+):[^@]*@", r"\1:***@", self.storage)

    @property
    def fixed(self) -> dict[str, Any]:
        """What may not change while the search lasts; the recipe beside it."""
        space = [str(axis) for axis in self.axes]
        return {"space": space, "metric": self.metric, "value": self.value, "grid": self.sampler == "grid"}

    def better(self, values: list[float]) -> float:
        """The best of several."""
        return min(values) if self.direction == "minimize" else max(values)


def read_question(options: argparse.Namespace) -> Question:
    """Raises ConfigError for a recipe, a space or a number that cannot be searched with."""
    config = load_recipe(options.recipe, options.overrides)
    axes = read_space(options.space)
    check_space(axes, options.recipe, options.overrides)
    if not config.validation.every_steps:
        raise ConfigError(
            "a search goes by validations, and validation.every_steps 0 turns them off: set it to a part of schedule.steps"
        )
    _check_numbers(options)
    _check_effects(options, config.schedule.steps)
    size = 1
    for axis in axes if options.sampler == "grid" else ():
        size *= len(axis.grid())
    if options.sampler == "grid" and options.trials not in (None, size):
        raise ConfigError(f"--trials {options.trials}, but this grid has {size} trials: leave --trials out")
    folder = Path(config.run.folder) / (options.name or f"{config.run.name}-search")
    return Question(
        config,
        options.recipe,
        tuple(options.overrides),
        axes,
        folder,
        options.storage or f"sqlite:///{(folder / 'search.db').absolute()}",
        size if options.sampler == "grid" else options.trials or DEFAULT_TRIALS,
        options.sampler,
        options.seed or 0,
        options.pruner,
        options.reduction or DEFAULT_REDUCTION,
        options.min_steps or max(config.schedule.steps // 2, 1),
        options.value,
    )


def _check_numbers(options: argparse.Namespace) -> None:
    for name, least in (("trials", 1), ("jobs", 1), ("workers", 1), ("reduction", 2), ("min_steps", 1)):
        number = getattr(options, name)
        if number is not None and number < least:
            raise ConfigError(f"--{name.replace('_', '-')} {number}: at least {least}")


def _check_effects(options: argparse.Namespace, steps: int) -> None:
    """Raise ConfigError for an option that another one, or the length of the trials, leaves without effect."""
    without = {
        "reduction": "--pruner asha" if options.pruner != "asha" else "",
        "min_steps": "--pruner asha or median" if options.pruner == "none" else "",
        "seed": "--sampler tpe or random" if options.sampler == "grid" else "",
        "workers": "--slurm" if options.slurm is None else "",
    }
    for name, owner in without.items():
        if owner and getattr(options, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} has no effect without {owner}: leave it out")
    varied = any(text.startswith("schedule.steps=") for text in options.space)
    if options.min_steps is not None and options.min_steps >= steps and not varied:
        raise ConfigError(
            f"--min-steps {options.min_steps} is not below schedule.steps {steps}, so that nothing would be pruned: lower it, "
            "or give --pruner none"
        )


def check_unchanged(question: Question, saved: dict[str, Any]) -> None:
    """Raise ConfigError if another question has the same name. `saved` is its `fixed`."""
    differences = [
        f"{name}: {json.dumps(saved[name])} → {json.dumps(value)}"
        for name, value in question.fixed.items()
        if saved[name] != value
    ]
    changed = compare(load_recipe(str(question.recipe)), question.config)
    differences += [str(d) for d in changed if d.kind != "harmless" or d.setting.startswith("validation.")]
    if differences:
        lines = "\n".join(f"  {line}" for line in differences)
        raise ConfigError(
            f"{question.folder} is another search:\n{lines}\nIts trials cannot be compared with new ones: give this search "
            "another --name, or the settings of that one"
        )


def write_recipe(question: Question) -> None:
    """Into the folder of the search."""
    question.folder.mkdir(parents=True, exist_ok=True)
    text = merged_recipe(question.typed, question.overrides)
    write_atomically(question.recipe, f"# {question.typed}, as the search {question.name} varies it.\n{text}")


def launcher_words(launcher: str) -> list[str]:
    """What stands before train.py: this interpreter without --launcher. Raises ConfigError if there is no such program."""
    words = shlex.split(launcher) or [sys.executable]
    beside = Path(sys.executable).parent / words[0]
    program = shutil.which(words[0]) or shutil.which(str(beside))
    if not program:
        raise ConfigError(f"--launcher {launcher}: {words[0]} is neither on PATH nor in {display_path(beside.parent)}")
    return [program, *words[1:]]
