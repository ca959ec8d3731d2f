"""What lets a preparation go on after a kill: the same plan, the finished units, one process at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import DataError
from data.clean import Normalisation
from data.documents import ReadOptions
from data.files import write_atomically
from data.manifest import MANIFEST_NAME, PARTIAL, Manifest, Record, SourceEntry
from data.tokenizer import Tokenizer

PLAN_NAME = "plan.json"
FINISHED_UNITS = "[0-9]*.json"


@dataclass(frozen=True)
class PrepareOptions:
    """The arguments of `python -m data prepare`."""

    sources: tuple[str, ...]
    out: Path
    vocab_size: int = 32768
    tokenizer: str | None = None
    sample_mb: int = 64
    split_valid: float = 0.005
    valid_tail: bool = False
    """Hold out the last `split_valid` of each document, not whole documents."""
    normalise: Normalisation = "nfc"
    keep_duplicates: bool = False
    read: ReadOptions = field(default_factory=ReadOptions)
    workers: int = 1
    overwrite: bool = False


class Plan(Record):
    """What decides the content of a dataset; kept beside the finished units so that only the same plan goes on."""

    settings: dict[str, Any]
    sources: tuple[SourceEntry, ...]


def settings(options: PrepareOptions, loaded: Tokenizer | None) -> dict[str, Any]:
    """The arguments that decide the content; how it is computed (workers) is not among them."""
    if loaded:
        tokenizer: dict[str, Any] = {"tokenizer": f"{options.tokenizer} ({loaded.fingerprint[:16]})"}
    else:
        tokenizer = {"tokenizer": "trained", "vocab_size": options.vocab_size, "sample_mb": options.sample_mb}
    return {
        **tokenizer,
        "split_valid": f"last {options.split_valid:g}" if options.valid_tail else options.split_valid,
        "normalise": options.normalise,
        "keep_duplicates": options.keep_duplicates,
        "text_field": options.read.text_field,
        "txt_documents": options.read.txt_documents,
        "skip_bad_lines": options.read.skip_bad_lines,
    }


def already_done(options: PrepareOptions, wanted: Plan) -> Manifest | None:
    """The finished dataset, if it is the one wanted. Raises DataError if it is another and may not be replaced."""
    if options.overwrite or not (options.out / MANIFEST_NAME).is_file():
        return None
    manifest = Manifest.load(options.out)
    found = Plan(settings=manifest.settings, sources=manifest.sources)
    if found != wanted:
        raise DataError(
            f"{options.out}: holds a dataset prepared differently ({_differences(found, wanted)}); "
            "choose another --out, or pass --overwrite to replace it"
        )
    shutil.rmtree(options.out / PARTIAL, ignore_errors=True)
    return manifest


def open_partial(options: PrepareOptions, wanted: Plan) -> Path:
    """The folder of finished units: new, or that of the same plan. Raises DataError if it belongs to another plan."""
    folder = options.out / PARTIAL
    plan_path = folder / PLAN_NAME
    if plan_path.is_file():
        found = Plan.model_validate_json(plan_path.read_bytes())
        if found != wanted and not options.overwrite and any(folder.glob(FINISHED_UNITS)):
            raise DataError(
                f"{options.out}: holds an unfinished preparation with other arguments ({_differences(found, wanted)}); "
                "repeat it as it was, choose another --out, or pass --overwrite to start over"
            )
        if found != wanted:
            shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    write_atomically(plan_path, wanted.model_dump_json())
    return folder


def _differences(found: Plan, wanted: Plan) -> str:
    """What differs, old -> new."""
    settings = [
        f"{key} {found.settings.get(key)} -> {value}"
        for key, value in wanted.settings.items()
        if found.settings.get(key) != value
    ]
    old, new = ({source.name: source for source in plan.sources} for plan in (found, wanted))
    if list(old) != list(new):
        return ", ".join([*settings, f"sources {' '.join(old)} -> {' '.join(new)}"])
    changed = [
        f"{name} changed: {old[name].files:,} files of {old[name].bytes:,} bytes -> "
        f"{new[name].files:,} of {new[name].bytes:,}, or newer ones"
        for name in new
        if old[name] != new[name]
    ]
    return ", ".join([*settings, *changed]) or "the version of the settings"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make the folder and hold it for this process. Raises DataError if another process holds it."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"--out {out}: another process is writing there; wait for it or stop it") from error
        yield
    finally:
        os.close(descriptor)
