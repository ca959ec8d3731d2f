"""Checkpoints that are either whole or not there.

checkpoints/step_00000500/    committed by one rename of .tmp-step_00000500
    manifest.json             size and hash of every other file; written last
    state.json                step, tokens, cursor, shapes, optimiser scalars
    recipe.yaml  tokenizer.json
    fragments/rank_00000.safetensors …
checkpoints/latest            name of the newest one; moves last
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from config.errors import CheckpointError
from engine.dist import World, barrier, from_main, gather_objects
from engine.state import engine_facts, read_fragments, write_fragments

MANIFEST, STATE, LATEST = "manifest.json", "state.json", "latest"


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps. The random state follows from the recipe's seed and `step`."""

    step: int = 0
    """Optimiser steps done."""
    tokens: int = 0
    """Tokens read."""
    cursor: int = 0
    """Next global sample of the stream."""


def save(folder: Path, engine: Any, state: RunState, documents: dict[str, str], world: World, keep_last: int) -> Path:
    """Write, verify and commit the checkpoint of `state.step` into `folder`; all ranks call it together.

    `documents` are further text files by name. Raises CheckpointError on every rank if any rank fails; earlier
    checkpoints are untouched then.
    """
    name = f"step_{state.step:08d}"
    final, temporary = folder / name, folder / f".tmp-{name}"
    if from_main(world.is_main and final.exists() and not damage(final)):
        return final
    _on_all_ranks(lambda: _start(temporary, engine, world), world)
    written = _on_all_ranks(
        lambda: _describe(write_fragments(temporary, engine, world.rank, world.size), temporary), world
    )
    facts = engine_facts(engine)
    _on_all_ranks(lambda: _commit(temporary, final, written, state, facts, documents, world, keep_last), world)
    return final


def load(folder: Path, engine: Any, world: World) -> RunState:
    """Fill the engine from the committed checkpoint `folder`; returns where the run stood."""
    saved = json.loads((folder / STATE).read_text())
    read_fragments(folder, engine, saved["engine"], world.rank)
    barrier()
    return RunState(**saved["run"])


def newest_intact(folder: Path, world: World, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose every file has the size and hash of its manifest; ranks share the reading.

    A damaged one is reported and skipped, never deleted.
    """
    names = from_main(committed(folder) if world.is_main else None)
    for name in reversed(names):
        problems = [p for p in gather_objects(damage(folder / name, world.rank, world.size)) if p]
        if not problems:
            return folder / name
        report(f"checkpoint {folder / name} is damaged and skipped: {problems[0]}")
    return None


def committed(folder: Path) -> list[str]:
    """Names of the checkpoints in `folder`, oldest first."""
    return sorted(path.name for path in folder.glob("step_*") if path.is_dir())


def damage(checkpoint: Path, rank: int = 0, world_size: int = 1) -> str | None:
    """What is wrong with a checkpoint, None if it is intact; this rank's share of the files is read."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in sorted(files.items())[rank::world_size]:
        try:
            found = _fingerprint(checkpoint / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found != expected:
            return f"{name}: {found['bytes']} bytes with hash {found['hash']}, the manifest says {expected}"
    return None


def _start(temporary: Path, engine: Any, world: World) -> None:
    if not world.is_main:
        return
    for leftover in temporary.parent.glob(".tmp-*"):
        shutil.rmtree(leftover)
    temporary.mkdir(parents=True)
    needed = 12 * sum(p.numel() if not hasattr(p, "ds_numel") else p.ds_numel for p in engine.module.parameters())
    free = shutil.disk_usage(temporary).free
    if free < needed:
        raise CheckpointError(
            f"{temporary.parent}: a checkpoint needs about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: "
            "free some space or lower checkpoint.keep_last; the same command then continues from the last checkpoint"
        )


def _commit(
    temporary: Path,
    final: Path,
    written: list[dict[str, Any]],
    state: RunState,
    facts: dict[str, Any],
    documents: dict[str, str],
    world: World,
    keep_last: int,
) -> None:
    if not world.is_main:
        return
    files = {name: entry for part in written for name, entry in part.items()}
    for name in files:
        if not (temporary / name).exists():
            raise CheckpointError(
                f"{temporary / name} was written by another rank but is not visible here: the run folder must be on a "
                "file system that all nodes share"
            )
    texts = {**documents, STATE: json.dumps({"run": asdict(state), "engine": facts}, indent=1)}
    for name, text in texts.items():
        (temporary / name).write_text(text)
        files |= _describe(temporary / name, temporary)
    manifest = {"version": 1, "step": state.step, "world_size": world.size, "files": files}
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
    _sync(temporary / MANIFEST)
    _sync(temporary)
    if final.exists():  # a damaged one of the same step: it was reported when it was skipped
        shutil.rmtree(final)
    os.rename(temporary, final)
    _sync(final.parent)
    pointer = final.parent / f".{LATEST}"
    pointer.write_text(final.name + "\n")
    os.replace(pointer, final.parent / LATEST)
    for name in committed(final.parent)[:-keep_last]:
        # Renamed first: a kill while deleting must not leave something that looks like a checkpoint.
        os.rename(final.parent / name, final.parent / f".tmp-{name}")
        shutil.rmtree(final.parent / f".tmp-{name}")


def _on_all_ranks(action: Callable[[], Any], world: World) -> list[Any]:
    """Run `action` everywhere and return all results; one rank's failure becomes the same error on every rank."""
    result: Any = None
    error: str | None = None
    try:
        result = action()
    except CheckpointError as failure:
        error = str(failure)
    except OSError as failure:
        error = f"rank {world.rank}: {failure.filename or 'checkpoint'}: {failure.strerror or failure}"
    outcomes = gather_objects((result, error))
    errors = [error for _, error in outcomes if error]
    if errors:
        raise CheckpointError(errors[0])
    return [result for result, _ in outcomes]


def _describe(path: Path, root: Path) -> dict[str, dict[str, Any]]:
    _sync(path)
    return {str(path.relative_to(root)): _fingerprint(path)}


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "hash": digest.hexdigest()}


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
