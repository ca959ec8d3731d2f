"""What a search has found: a table, search.json, best.yaml; and which checkpoints are kept."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from config import load_recipe
from config.load import display_path, merged_recipe
from data.files import write_atomically
from tasks.search.question import Question
from tasks.search.space import overrides, shown
from tasks.search.study import attempts, known_trials, origin

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

LEAST_FOR_IMPORTANCE = 4
"""Trials; from fewer nobody can tell what mattered."""


@dataclass(frozen=True)
class Row:
    """A trial as people see it."""

    number: int
    state: str
    """complete, pruned, refused, diverged, failed, running or waiting."""
    value: float | None
    params: dict[str, Any]
    steps: int
    minutes: float
    own: bool
    """Whether its settings are the recipe's."""
    curve: list[tuple[int, float]]
    """Its validations."""
    message: str


def rows(study: "Study") -> list[Row]:
    trials = study.get_trials(deepcopy=False)
    return [_row(trial, trials) for trial in known_trials(study)]


def _row(trial: "FrozenTrial", trials: "list[FrozenTrial]") -> Row:
    same = [trials[number] for number in attempts(trial)] + [trial]
    durations = [t.duration.total_seconds() for t in same if t.duration is not None]
    attributes = trial.user_attrs
    return Row(
        origin(trial),
        attributes.get("outcome", trial.state.name.lower().replace("fail", "failed")),
        trial.value if trial.value is not None and math.isfinite(trial.value) else None,
        dict(trial.params),
        attributes.get("steps", 0),
        sum(durations) / 60,
        attributes.get("own", False),
        [(step, value) for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)],
        attributes.get("message", ""),
    )


def best(study: "Study") -> "FrozenTrial | None":
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return study.best_trial if done else None


def comparable(study: "Study") -> "tuple[str, Study | None]":
    """The complete trials; if there are too few, all trials by their first validation: in words and as a study of its own.
    None if nobody could tell from them what mattered."""
    import optuna

    trials = [trial for trial in known_trials(study) if trial.intermediate_values]
    values = {t.number: t.value for t in trials if t.state == optuna.trial.TrialState.COMPLETE}
    basis = f"{len(values)} complete trials"
    curves = {t.number: {step: v for step, v in t.intermediate_values.items() if math.isfinite(v)} for t in trials}
    if len(values) < LEAST_FOR_IMPORTANCE and any(curves.values()):
        first = min(step for curve in curves.values() for step in curve)
        values = {number: curve[first] for number, curve in curves.items() if first in curve}
        basis = f"{len(values)} trials after {first:,} steps"
    if len(values) < LEAST_FOR_IMPORTANCE or len(set(values.values())) < 2:
        return basis, None
    judged = optuna.create_study(direction=study.direction)
    judged.add_trials(
        optuna.create_trial(params=trial.params, distributions=trial.distributions, value=values[trial.number])
        for trial in trials
        if trial.number in values
    )
    return basis, judged


def importance(judged: "Study | None") -> dict[str, float]:
    """Share of each setting in the variance of the values, by fANOVA (Hutter et al., ICML 2014)."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    return get_param_importances(judged, evaluator=FanovaImportanceEvaluator(seed=0)) if judged else {}


def table(question: Question, found: list[Row]) -> str:
    """Trials in lines, the best first."""
    settings = [axis.setting for axis in question.axes]
    lines = [["trial", "state", question.metric.removeprefix("validation_"), "steps", "minutes", *settings]]
    for row in ranked(question, found):
        value = "" if row.value is None else f"{row.value:.4f}"
        cells = [shown(row.params[name]) if name in row.params else "" for name in settings]
        lines.append([str(row.number), row.state, value, f"{row.steps:,}", f"{row.minutes:.1f}", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def ranked(question: Question, found: Sequence[Row]) -> list[Row]:
    """Best first, then what was pruned, then the rest."""
    sign = 1 if question.direction == "minimize" else -1
    order = {"complete": 0, "pruned": 1}
    return sorted(found, key=lambda row: (order.get(row.state, 2), sign * (row.value or 0.0)))


def write_json(question: Question, found: list[Row], best: int | None, importance: dict[str, float]) -> None:
    """search.json. `best` is a trial's number."""
    values = {
        "recipe": question.typed,
        "overrides": question.overrides,
        "space": [str(axis) for axis in question.axes],
        "metric": question.metric,
        "direction": question.direction,
        "best": best,
        "importance": importance,
        "trials": [asdict(row) for row in found],
    }
    write_atomically(question.folder / "search.json", json.dumps(values, indent=1) + "\n")


def write_best(question: Question, winner: "FrozenTrial", trials: int) -> str:
    """best.yaml, the recipe of the best of so many trials. Returns what can be done with it."""
    path = question.folder / "best.yaml"
    chosen = overrides(question.axes, winner.params)
    recipe = merged_recipe(str(question.recipe), [*chosen, f"run.name={json.dumps(f'{question.name}-best')}"])
    about = (
        f"# Best of {trials} trials of {question.name}, which varied {question.typed}: trial {origin(winner)}, "
        f"{question.metric.replace('_', ' ')} {winner.value:.4f}.\n# {' '.join(chosen)}\n"
    )
    write_atomically(path, about + recipe)
    steps = load_recipe(str(path)).schedule.steps
    return (
        f"best          trial {origin(winner)}: {' '.join(chosen)}\n"
        f"train longer  deepspeed train.py {display_path(path)} schedule.steps={2 * steps}"
    )


def forget_checkpoints(question: Question, study: "Study") -> None:
    """Remove those of finished trials, but for the best so far."""
    from optuna.trial import TrialState

    winner = best(study)
    for trial in known_trials(study):
        # Between its failure and its new entry an interrupted trial has failed without an outcome.
        over = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "outcome" in trial.user_attrs
        if over and (winner is None or trial.number != winner.number):
            shutil.rmtree(question.folder / f"trial_{origin(trial):04d}" / "checkpoints", ignore_errors=True)
