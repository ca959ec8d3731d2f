"""`--tune`: try the planner's best options on this machine's devices for some seconds each, and learn from each trial."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from config import Choice, ConfigError, RunConfig, dump_recipe
from config.hardware import Cluster
from config.parallel import ranks_per_row
from launch.files import write_file
from launch.plan.choices import Choices
from launch.plan.option import MICRO_BATCH, Option, Room, evaluate, timed, with_settings
from launch.plan.reason import in_words
from launch.plan.trial import Measured, run_trial
from launch.plan.write import Source

RESULTS = "tune.json"
GLOBAL_BATCH = "batch.global_batch_size"
KINDS_FIRST = 3
"""Kinds of options that are tried before the neighbours of the fastest."""


@dataclass(frozen=True)
class Trial:
    settings: dict[str, Any]
    words: str
    predicted_tokens_per_second: float
    predicted_gb: float
    result: Measured

    def __str__(self) -> str:
        predicted = f"predicted {self.predicted_tokens_per_second:,.0f} tokens/s, {self.predicted_gb:,.2f} GB"
        if self.result.outcome != "measured":
            return f"{self.words}: {predicted}; {self.result.outcome}"
        speed = self.result.tokens_per_second / self.predicted_tokens_per_second - 1
        memory = self.result.memory_gb / self.predicted_gb - 1
        return (
            f"{self.words}: {predicted}; measured {self.result.tokens_per_second:,.0f} tokens/s ({speed:+.0%}), "
            f"{self.result.memory_gb:,.2f} GB ({memory:+.0%})"
        )


@dataclass
class Results:
    """Trials so far, kept in a file."""

    path: Path
    question: dict[str, Any]
    """What has to be the same for trials to be comparable."""
    trials: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        self.trials.append(trial)
        temporary = self.path.with_suffix(".tmp")
        text = json.dumps({**self.question, "trials": [asdict(t) for t in self.trials]}, indent=1)
        write_file(temporary, text, "--write")
        temporary.replace(self.path)

    def of(self, option: Option) -> Trial | None:
        return next((trial for trial in self.trials if trial.settings == option.settings()), None)

    def memory_factor(self, room: Room) -> float:
        """By how much predictions of memory are too low. What ran out of memory needs more than there is."""
        measured = [t.result.memory_gb / t.predicted_gb for t in self.trials if t.result.outcome == "measured"]
        failed = [room.device_bytes / 1e9 / t.predicted_gb for t in self.trials if t.result.outcome == "out of memory"]
        return max([*measured, *failed], default=1.0)


def run_trials(
    source: Source, choices: Choices, bench: Room, path: Path, trials: int, seconds: float
) -> tuple[Choice[Option], str]:
    """Try options on `bench`, this machine's share of the cluster, until there are `trials` results in the file `path`.

    Returns the fastest with its reason, and the trials in words. Raises ConfigError if the file belongs to another recipe
    or machine, or if nothing trains; KeyboardInterrupt after the trials so far were kept.
    """
    results = _open(path, choices.recipe, bench)
    if bench.cluster != choices.room.cluster:
        print(f"\ntrials measure what {_devices(bench.cluster)} compute; the network between nodes stays predicted")
    given = dict(override.partition("=")[::2] for override in source.overrides)
    for number, trial in enumerate(results.trials, 1):
        print(f"trial {number}, kept from before: {trial}")
    while len(results.trials) < trials and (option := _next(choices, results, bench)):
        tried = on_bench(option, bench)
        assert tried.step is not None
        settings = given | tried.settings() | {GLOBAL_BATCH: tried.config.batch.global_batch_size}
        result = run_trial(source.recipe, settings, tried.ds_config, bench.cluster.gpus, seconds)
        if result.outcome == "failed" and not results.trials:
            raise ConfigError(f"the first trial, {in_words(tried)}, failed:\n{result.message}")
        predicted = tried.step.tokens_per_second, tried.device_bytes / 1e9
        results.add(Trial(option.settings(), in_words(tried), *predicted, result))
        print(f"trial {len(results.trials)} of {trials}: {results.trials[-1]}", flush=True)
    winner = _winner(choices, results, bench)
    print(f"→ {in_words(winner.value)}: {winner.reason}")
    return winner, "\n".join([f"Trials of {seconds:g} s on {_devices(bench.cluster)}:", *map(str, results.trials)])


def on_bench(option: Option, bench: Room) -> Option:
    """The option as this machine's ranks compute it: the same micro-batches and accumulation, so a smaller global batch.

    Raises ConfigError if they cannot.
    """
    together, batch = ranks_per_row(option.config.engine), option.config.batch
    if option.derived.world_size == bench.cluster.gpus:
        return timed(option, bench.cluster)
    readers = max(bench.cluster.gpus // together, 1)
    rows = batch.micro_batch_size * option.derived.accumulation_steps * readers
    config = with_settings(option.config, {GLOBAL_BATCH: rows, "batch.ramp": ()})
    return timed(evaluate(config, bench.cluster, option.ds_config), bench.cluster)


def _next(choices: Choices, results: Results, bench: Room) -> Option | None:
    """First the best of some kinds, then neighbours of the fastest so far, then other kinds."""
    best = choices.best()
    assert best is not None
    factor = results.memory_factor(bench)
    kinds = {_kind(option.settings()) for option in choices.fitting}
    tried = {_kind(trial.settings) for trial in results.trials}
    leaders = (
        option
        for option in [best, *choices.fitting]
        if _kind(option.settings()) not in tried and _may_fit(option, factor, bench)
    )
    neighbours = (option for option in _neighbours(choices, results) if _may_fit(option, factor, bench))
    order = [leaders, neighbours] if len(tried) < min(KINDS_FIRST, len(kinds)) else [neighbours, leaders]
    return next((option for options in order for option in options), None)


def _may_fit(option: Option, factor: float, bench: Room) -> bool:
    if option.derived.world_size != bench.cluster.gpus:
        try:
            option = on_bench(option, bench)
        except ConfigError:
            return False
    return option.device_bytes * factor < bench.device_bytes


def _neighbours(choices: Choices, results: Results) -> list[Option]:
    """The next larger and smaller micro-batches that were not tried of the fastest option so far; of the last one if none
    was measured."""
    if not results.trials:
        return []
    measured = [trial for trial in results.trials if trial.result.outcome == "measured"]
    here = max(measured, key=lambda trial: trial.result.tokens_per_second, default=results.trials[-1]).settings
    family = [o for o in [*choices.fitting, *choices.too_large] if _kind(o.settings()) == _kind(here)]
    family = sorted((o for o in family if results.of(o) is None), key=_micro_batch)
    larger = [option for option in family if _micro_batch(option) > here[MICRO_BATCH]]
    smaller = [option for option in family if _micro_batch(option) < here[MICRO_BATCH]]
    return [*larger[:1], *smaller[-1:]]


def _kind(settings: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(value for name, value in settings.items() if name != MICRO_BATCH)


def _micro_batch(option: Option) -> int:
    return option.config.batch.micro_batch_size


def _winner(choices: Choices, results: Results, bench: Room) -> Choice[Option]:
    """The fastest; of a larger cluster, by its prediction times what the trial says of predictions."""
    scores = []
    for option in [*choices.fitting, *choices.too_large]:
        trial = results.of(option)
        if trial and trial.result.outcome == "measured":
            planned = timed(option, choices.room.cluster)
            assert planned.step is not None
            error = trial.result.tokens_per_second / trial.predicted_tokens_per_second
            scores.append((planned.step.tokens_per_second * error, planned, trial))
    if not scores:
        raise ConfigError("no trial came to an end:\n" + "\n".join(map(str, results.trials)))
    score, option, trial = max(scores, key=lambda s: s[0])
    here = f"{trial.result.tokens_per_second:,.0f} tokens/s measured on {_devices(bench.cluster)}"
    if choices.room.cluster != bench.cluster:
        here += f", which makes {score:,.0f} on {_devices(choices.room.cluster)}"
    return Choice(option, f"the fastest of {len(scores)} trials: {here}")


def _open(path: Path, config: RunConfig, bench: Room) -> Results:
    recipe = hashlib.sha256(dump_recipe(config).encode()).hexdigest()
    question = {"recipe": recipe, "devices": _devices(bench.cluster)}
    if not path.exists():
        return Results(path, question)
    saved = json.loads(path.read_text())
    other = [name for name, value in question.items() if saved.get(name) != value]
    if other:
        raise ConfigError(
            f"{path} has trials of another {' and other '.join(other)}: remove it, or give another --write folder"
        )
    return Results(path, question, [Trial(**{**t, "result": Measured(**t["result"])}) for t in saved["trials"]])


def _devices(cluster: Cluster) -> str:
    return f"{cluster.gpus} × {cluster.accelerator.name}"
