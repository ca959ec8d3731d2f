"""The folder of a run, and the decision whether to start, continue or refuse.

runs/NAME/
    recipe.yaml      the resolved recipe of the last start
    metrics.jsonl    one line a step
    tensorboard/
    checkpoints/
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import CheckpointError, ConfigError, RunConfig, dump_recipe, load_recipe
from config.changes import ENDLESS, compare
from config.schema import RunSection
from data.manifest import Manifest
from data.tokenizer import Tokenizer
from engine.checkpoint import STATE, RunState, committed, newest_intact
from engine.dist import World, from_main
from engine.monitor import METRICS

RECIPE, TOKENIZER, DATA = "recipe.yaml", "tokenizer.json", "data.json"


@dataclass(frozen=True)
class Run:
    folder: Path
    checkpoint: Path | None
    """Checkpoint to continue from."""
    state: RunState

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def run_documents(config: RunConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """The texts a checkpoint carries: recipe, tokenizer, and which data the cursor counts in."""
    folders = [dataset.path for dataset in config.data.datasets]
    return {
        RECIPE: dump_recipe(config),
        TOKENIZER: tokenizer.spec,
        DATA: json.dumps({folder: Manifest.load(Path(folder)).hash for folder in folders}, indent=1),
    }


def open_run(config: RunConfig, documents: dict[str, str], world: World, say: Any) -> Run:
    """Make or find the run's folder and decide where to start; all ranks call it together.

    `documents` are the texts a checkpoint carries (recipe, tokenizer); the saved ones are compared with them. Raises
    ConfigError if the folder cannot be written or the recipe's changes need consent, CheckpointError if there is
    nothing to continue under `resume: must` or the checkpoint was made with another tokenizer.
    """
    folder = Path(config.run.folder) / config.run.name
    problem = from_main(_prepare_folder(folder, config.run, say) if world.is_main else None)
    if problem:
        raise ConfigError(problem)
    checkpoint = newest_intact(folder / "checkpoints", world, say)
    if checkpoint is None:
        if config.run.resume == "must":
            raise CheckpointError(f"{folder}/checkpoints has no intact checkpoint to continue from (run.resume=must)")
        if world.is_main:
            (folder / RECIPE).write_text(documents[RECIPE])
        return Run(folder, None, RunState())
    state = RunState(**json.loads((checkpoint / STATE).read_text())["run"])
    check_resume(config, checkpoint, documents, say)
    if world.is_main:
        (folder / RECIPE).write_text(documents[RECIPE])
    return Run(folder, checkpoint, state)


def summary(config: RunConfig, run_folder: Path, recipe: str) -> str:
    """What a finished run leaves behind, and what can be done with it."""
    records = [json.loads(line) for line in (run_folder / METRICS).read_text().splitlines()]
    losses = [r for r in records if "validation_loss" in r]
    samples = [r["sample"] for r in records if "sample" in r]
    lines = [f"{run_folder} is complete: {config.schedule.steps:,} steps"]
    if losses:
        lines[0] += (
            f", validation loss {losses[-1]['validation_loss']:.4f}"
            f" (perplexity {losses[-1]['validation_perplexity']:,.2f})"
        )
    if samples:
        lines += ["sample:", *("  | " + line for line in samples[-1].splitlines())]
    checkpoint = committed(run_folder / "checkpoints")[-1]
    steps = 2 * config.schedule.steps
    consent = "" if config.schedule.name in ENDLESS else " run.accept_changes=true"
    lines += [
        f"checkpoint    {run_folder}/checkpoints/{checkpoint}",
        f"curves        tensorboard --logdir {run_folder.parent}",
        f"more text     python -m tasks generate {run_folder} --prompt TEXT",
        f"train longer  deepspeed train.py {recipe} schedule.steps={steps}{consent}",
        f"start over    deepspeed train.py {recipe} run.resume=fresh",
    ]
    return "\n".join(lines)


def check_resume(config: RunConfig, checkpoint: Path, documents: dict[str, str], say: Any) -> None:
    """Refuse what cannot continue, ask for consent to what changes the result, and name the rest."""
    if (checkpoint / TOKENIZER).read_text() != documents[TOKENIZER]:
        raise CheckpointError(
            f"{checkpoint / TOKENIZER} differs from the tokenizer of {config.data.datasets[0].path}: the shards' ids "
            "would mean other text. Train on shards made with the checkpoint's tokenizer, or give another run.name"
        )
    saved_data, data = json.loads((checkpoint / DATA).read_text()), json.loads(documents[DATA])
    if list(saved_data.values()) != list(data.values()) and not config.run.accept_changes:
        raise ConfigError(
            f"the data differs from what {checkpoint} was trained on: {saved_data} there, {data} here. The order would "
            "be another from here on: restore the corpus, add run.accept_changes=true, or start over with run.resume=fresh"
        )
    differences = compare(load_recipe(str(checkpoint / RECIPE), []), config)
    refused = [d for d in differences if d.kind == "refused"]
    consent = [d for d in differences if d.kind == "needs_consent"]
    if refused:
        lines = "\n".join(f"  {d}" for d in refused)
        raise ConfigError(
            f"{checkpoint} cannot continue under these settings:\n{lines}\nGive another run.name, or run.resume=fresh"
        )
    if consent and not config.run.accept_changes:
        lines = "\n".join(f"  {d}" for d in consent)
        raise ConfigError(
            f"settings that change the result differ from those of {checkpoint}:\n{lines}\n"
            "Add run.accept_changes=true to continue with the new ones, or run.resume=fresh to start over"
        )
    for difference in differences:
        say(f"continuing with a changed setting: {difference}")


def _prepare_folder(folder: Path, settings: RunSection, say: Any) -> str | None:
    """Make the folder, setting an old run aside if asked; returns a message if that fails."""
    try:
        if settings.resume == "fresh" and folder.exists():
            aside = _free_name(folder)
            folder.rename(aside)
            say(f"the earlier run was set aside as {aside}")
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"run.folder: cannot write {folder}: {error.strerror}; set run.folder to a folder that you can write"
    return None


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


def hold_lock(folder: Path, world: World) -> Any:
    """Hold the run's lock until the returned file is closed, so that two trainings cannot write one folder.

    Raises ConfigError on every rank, naming the process that holds it.
    """
    handle, holder = _lock(folder) if world.is_main else (None, None)
    if holder := from_main(holder):
        raise ConfigError(f"{folder} is in use by process {holder}: wait for it, stop it, or give another run.name")
    return handle


def _lock(folder: Path) -> tuple[Any, str | None]:
    handle = (folder / ".lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        return None, handle.read().strip() or "unknown"
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle, None
