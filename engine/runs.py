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
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import CheckpointError, ConfigError, RunConfig, dump_recipe, load_recipe
from config.changes import ENDLESS, compare
from config.objective_check import METRICS as METRICS_OF
from config.objective_schema import WRITE_TEXT
from config.schema import RunSection
from data.example_files import content_hash
from data.manifest import Manifest
from data.tokenizer import SETTINGS_NAME, Tokenizer
from engine.checkpoint import STATE, RunState, committed, newest_intact
from engine.dist import World, from_main, together
from engine.monitor import METRICS

Say = Callable[[str], None]
RECIPE, TOKENIZER, DATA = "recipe.yaml", "tokenizer.json", "data.json"


@dataclass(frozen=True)
class Run:
    folder: Path
    checkpoint: Path | None
    """Checkpoint to continue from."""
    state: RunState
    lock: Any
    """Open file of the main rank; the lock ends with the process."""

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def run_documents(config: RunConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """The texts a checkpoint carries: recipe, tokenizer, and which data the cursor counts in."""
    hashes = {dataset.path: Manifest.load(Path(dataset.path)).hash for dataset in config.data.datasets}
    if labelled := config.data.examples or config.data.pairs:
        hashes = {labelled.train: content_hash(labelled.train)}
    texts = {RECIPE: dump_recipe(config), TOKENIZER: tokenizer.spec, SETTINGS_NAME: tokenizer.settings}
    return {**texts, DATA: json.dumps(hashes, indent=1)}


def open_run(config: RunConfig, documents: dict[str, str], world: World, say: Say) -> Run:
    """Lock, make or find the run's folder and decide where to start; all ranks call it together.

    `documents` are the texts a checkpoint carries; the saved ones are compared with them. Raises ConfigError if the
    folder cannot be written, is in use, or the recipe's changes need consent; CheckpointError if there is nothing to
    continue from though there should be, or the checkpoint was made with another tokenizer.
    """
    folder = Path(config.run.folder) / config.run.name
    lock = together(lambda: _prepare_folder(folder, config.run, say) if world.is_main else None, world)
    checkpoint = newest_intact(folder / "checkpoints", world, say)

    def decide() -> RunState:
        """On one rank: a thousand need not read the same small files."""
        state = RunState()
        if checkpoint is not None:
            check_resume(config, checkpoint, documents, say)
            state = RunState(**json.loads((checkpoint / STATE).read_text())["run"])
        elif config.run.resume == "must" or committed(folder / "checkpoints"):
            raise CheckpointError(
                f"{folder}/checkpoints has no intact checkpoint to continue from: restore one, or add run.resume=fresh, "
                "which sets this run aside and starts over"
            )
        (folder / RECIPE).write_text(documents[RECIPE])
        return state

    state = from_main(together(lambda: decide() if world.is_main else None, world))
    return Run(folder, checkpoint, state, lock)


def summary(config: RunConfig, run_folder: Path, again: Sequence[str], state: RunState) -> str:
    """What a finished run leaves behind, and what can be done with it; `again` is what stood behind train.py."""
    records = [json.loads(line) for line in (run_folder / METRICS).read_text().splitlines()]
    losses = [r for r in records if "validation_loss" in r]
    samples = [r["sample"] for r in records if "sample" in r]
    lines = [f"{run_folder} is complete: {state.step:,} steps"]
    if state.step < config.schedule.steps:
        lines[0] += f" of {config.schedule.steps:,}, as no validation was better than that of step {state.best_step:,}"
    if losses:
        lines[0] += f", validation loss {losses[-1]['validation_loss']:.4f}"
        if "validation_perplexity" in losses[-1]:
            bits = losses[-1].get("validation_bits_per_byte")
            each = f", {bits:.4f} bits per byte" if bits else ""
            lines[0] += f" (perplexity {losses[-1]['validation_perplexity']:,.2f}{each})"
        for name in METRICS_OF.get(config.objective.name, ())[1:]:
            lines[0] += f", {name} {losses[-1][f'validation_{name}']:.4f}"
    if samples:
        lines += ["sample:", *("  | " + line for line in samples[-1].splitlines())]
    if not config.checkpoint.every_steps:
        return "\n".join([*lines, "nothing was saved, as checkpoint.every_steps is 0"])
    checkpoint = committed(run_folder / "checkpoints")[-1]
    steps = 2 * config.schedule.steps
    consent = "" if config.schedule.name in ENDLESS else " run.accept_changes=true"
    bin_, longer = _commands_folder(), [word for word in again if not word.startswith("schedule.steps=")]
    lines += [
        f"checkpoint    {run_folder}/checkpoints/{checkpoint}",
        *([f"best          after step {state.best_step:,}"] if config.validation.keep_best else []),
        f"curves        {bin_}tensorboard --logdir {run_folder.parent}",
        f"train longer  {bin_}deepspeed train.py {shlex.join(longer)} schedule.steps={steps}{consent}",
        f"start over    {bin_}deepspeed train.py {shlex.join(again)} run.resume=fresh",
    ]
    if config.objective.name in WRITE_TEXT:
        lines.insert(-2, f"more text     {bin_}python -m tasks generate {run_folder} --prompt TEXT")
    return "\n".join(lines)


def _commands_folder() -> str:
    """Where this interpreter's commands lie, if the shell would not find them by name."""
    here = Path(sys.executable).parent
    if shutil.which("deepspeed") == str(here / "deepspeed"):
        return ""
    return f"{here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here}/"


def check_resume(config: RunConfig, checkpoint: Path, documents: dict[str, str], say: Say) -> None:
    """Refuse what cannot continue, ask for consent to what changes the result, and name the rest."""
    data = json.loads(documents[DATA])
    if (checkpoint / TOKENIZER).read_text() != documents[TOKENIZER]:
        raise CheckpointError(
            f"{checkpoint / TOKENIZER} differs from the tokenizer of {next(iter(data))}: the data's ids would mean other "
            "text. Train on data made with the checkpoint's tokenizer, or give another run.name"
        )
    differences = compare(load_recipe(str(checkpoint / RECIPE)), config)
    refused = [str(d) for d in differences if d.kind == "refused"]
    consent = [str(d) for d in differences if d.kind == "needs_consent"]
    saved = json.loads((checkpoint / DATA).read_text())
    if list(saved.values()) != list(data.values()):
        consent.append(
            f"content of {', '.join(data)}: {_short(saved)} → {_short(data)} (the order is another from here on)"
        )
    if refused:
        lines = "\n".join(f"  {line}" for line in refused)
        raise ConfigError(
            f"{checkpoint} cannot continue under these settings:\n{lines}\nGive another run.name, or run.resume=fresh"
        )
    if consent and not config.run.accept_changes:
        lines = "\n".join(f"  {line}" for line in consent)
        raise ConfigError(
            f"settings that change the result differ from those of {checkpoint}:\n{lines}\n"
            "Add run.accept_changes=true to continue with the new ones, or run.resume=fresh to start over"
        )
    for line in consent + [str(d) for d in differences if d.kind == "harmless"]:
        say(f"continuing with a change: {line}")


def _short(hashes: dict[str, str]) -> str:
    return ", ".join(value[:12] for value in hashes.values())


def _prepare_folder(folder: Path, settings: RunSection, say: Say) -> Any:
    """Lock the run's name, make its folder, and set an old run aside if asked. Returns the open lock file."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        if settings.resume == "fresh" and folder.exists():
            aside = _free_name(folder)
            folder.rename(aside)
            say(f"the earlier run was set aside as {aside}")
        elif settings.resume == "replace" and folder.exists():
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"run.folder: cannot write {folder}: {error.strerror}; set run.folder to a folder that you can write"
        ) from None
    return lock


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return aside


def _lock(folder: Path) -> Any:
    """Lock the run beside its folder, which `resume: fresh` may rename, so that two trainings cannot write one run."""
    handle = folder.with_name(f".{folder.name}.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read().strip() or "unknown"
        raise ConfigError(
            f"{folder} is in use by process {holder}: wait for it, stop it, or give another run.name"
        ) from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
