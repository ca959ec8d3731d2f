"""Checkpoints that are either whole or not there.

checkpoints/step_00000500/    committed by one rename of .tmp-step_00000500
    manifest.json             size and hash of every other file; written last
    state.json                step, tokens, cursor, shapes, optimiser scalars
    recipe.yaml  tokenizer.json  tokenizer_config.json
    fragments/rank_00000.safetensors …
checkpoints/latest            name of the newest one; moves last
checkpoints/best              name of the one with the best validation, under validation.keep_best
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import xxhash
from torch.profiler import record_function

from config import RunConfig
from config.errors import CheckpointError
from data.files import sync
from engine.dist import World, barrier, first_report, from_main, gather_to_main, together
from engine.engine import Validation
from engine.state import FRAGMENTS, engine_facts, fragment_bytes, read_fragments, write_fragments

MANIFEST, STATE, LATEST, BEST = "manifest.json", "state.json", "latest", "best"


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps. The random state follows from the recipe's seed and `step`."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens read."""
    cursor: int = 0
    """Next global sample of the stream."""
    best: float | None = None
    """Of all validations, what `Validation.value` was lowest; None before the first."""
    best_step: int = 0
    """After which step that was."""
    metric: str = "loss"
    """Of what `best` is the value."""

    def is_over(self, config: RunConfig) -> bool:
        """Whether all steps are done, or validations have not got better for too long."""
        return self.step >= config.schedule.steps or config.validation.has_lost_patience(self.step, self.best_step)

    def judged(self, found: Validation, metric: str) -> "RunState":
        """The state after a validation. Of another metric than before, it is the best so far."""
        value = found.value(metric)
        if self.best is not None and metric == self.metric and not value < self.best:
            return self
        return replace(self, best=value, best_step=self.step, metric=metric)


@record_function("checkpoint")
def save(
    folder: Path,
    engine: Any,
    state: RunState,
    documents: dict[str, str],
    world: World,
    keep_last: int,
    keep_best: bool = False,
) -> Path:
    """Write, verify and commit the checkpoint of `state.step` into `folder`; all ranks call it together.

    The newest `keep_last` stay, and with `keep_best` that of `state.best_step`, too. `documents` are further text files by
    name. Raises CheckpointError on every rank if any rank fails; earlier checkpoints are untouched then.
    """
    final = folder / _name(state.step)
    temporary = folder / f".tmp-{final.name}"
    facts = engine_facts(engine)
    texts = {**documents, STATE: json.dumps({"run": asdict(state), "engine": facts}, indent=1)}
    together(lambda: _start(temporary, fragment_bytes(engine, facts)) if world.is_main else None, world)
    written = together(lambda: _write_share(temporary, engine, world), world)
    files = {name: entry for share in gather_to_main(written, world) for name, entry in share.items()}
    manifest = {"version": 1, "step": state.step, "world_size": world.size, "files": files}
    best = _name(state.best_step) if keep_best and state.best is not None else ""
    together(lambda: _commit(temporary, final, manifest, texts, keep_last, best) if world.is_main else None, world)
    return final


def load(folder: Path, engine: Any, world: World) -> None:
    """Fill the engine from the committed checkpoint `folder`."""
    facts = json.loads((folder / STATE).read_text())["engine"]
    read_fragments(folder, engine, facts, world.rank, world.size)
    barrier()


def newest_intact(folder: Path, world: World, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every file has the size and hash of its manifest; ranks share the reading.

    A damaged one is reported and skipped, never deleted.
    """
    names = from_main(committed(folder) if world.is_main else None)
    for name in reversed(names):
        problem = first_report(damage(folder / name, world.rank, world.size), world)
        if problem is None:
            return folder / name
        report(f"checkpoint {folder / name} is damaged and skipped: {problem}")
    return None


def committed(folder: Path) -> list[str]:
    """Names of the checkpoints in `folder`, oldest first."""
    return sorted(path.name for path in folder.glob("step_*") if path.is_dir())


def find_checkpoint(path: Path) -> Path:
    """`path` itself if it is a checkpoint, else of the run in that folder the best one, if it kept that, or the newest
    intact one.

    Raises CheckpointError if there is none, or if the checkpoint named is damaged.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; a model is a local folder, so download one of a hub first")
    if (path / MANIFEST).is_file():
        if problem := damage(path):
            raise CheckpointError(f"{path} is damaged: {problem}")
        return path
    names = committed(path / "checkpoints")
    if (pointer := path / "checkpoints" / BEST).is_file():
        names.append(pointer.read_text().strip())
    for name in reversed(names):
        if not damage(path / "checkpoints" / name):
            return path / "checkpoints" / name
    raise CheckpointError(
        f"{path}: no intact checkpoint here; give a run's folder, one of its checkpoints, or a Hugging Face folder "
        "(config.json, model.safetensors, tokenizer.json)"
    )


def damage(checkpoint: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if it is intact; this rank's share of the files is read."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in sorted(files.items())[rank::world_size]:
        try:
            found = _fingerprint(checkpoint / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name}: {found['bytes']} bytes with hash {found['hash']}, the manifest says {expected}"
    return None


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _start(temporary: Path, needed: int) -> None:
    for leftover in temporary.parent.glob(".tmp-*"):
        shutil.rmtree(leftover)
    (temporary / FRAGMENTS).mkdir(parents=True)
    free = shutil.disk_usage(temporary).free
    if free < needed:
        raise CheckpointError(
            f"{temporary.parent}: a checkpoint needs about {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free: "
            "free some space or lower checkpoint.keep_last; the same command then continues from the last checkpoint"
        )


def _write_share(temporary: Path, engine: Any, world: World) -> dict[str, dict[str, Any]]:
    if not temporary.is_dir():
        raise CheckpointError(
            f"rank {world.rank} does not see {temporary}, which rank 0 made: the run folder must be on a file system "
            "that all nodes share"
        )
    return _describe(write_fragments(temporary, engine, world.rank, world.size), temporary)


def _commit(
    temporary: Path, final: Path, manifest: dict[str, Any], texts: dict[str, str], keep_last: int, best: str
) -> None:
    for name, text in texts.items():
        (temporary / name).write_text(text)
        manifest["files"] |= _describe(temporary / name, temporary)
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (temporary / MANIFEST, temporary / FRAGMENTS, temporary):
        sync(path)
    if final.exists():  # a damaged one of the same step: it was reported when it was skipped
        shutil.rmtree(final)
    os.rename(temporary, final)
    sync(final.parent)
    _point(final.parent / LATEST, final.name)
    if best:
        _point(final.parent / BEST, best)
    else:
        (final.parent / BEST).unlink(missing_ok=True)
    older = [name for name in committed(final.parent) if name <= final.name]
    for name in older[:-keep_last]:
        if name == best:
            continue
        # Renamed first: a kill while deleting must not leave something that looks like a checkpoint.
        os.rename(final.parent / name, final.parent / f".tmp-{name}")
        shutil.rmtree(final.parent / f".tmp-{name}")


def _point(pointer: Path, name: str) -> None:
    hidden = pointer.with_name(f".{pointer.name}")
    hidden.write_text(name + "\n")
    os.replace(hidden, pointer)


def _describe(path: Path, root: Path) -> dict[str, dict[str, Any]]:
    sync(path)
    return {str(path.relative_to(root)): _fingerprint(path)}


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "hash": digest.hexdigest()}
