"""Files of labelled examples and pairs, and the model that a run starts from: whether a host has them, and reads them."""

import csv
import hashlib
import json
from pathlib import Path

from launch.doctor.check import Check, fail, ok
from launch.doctor.filesystem import SHARE_IT

HEAD = 2**20
"""Bytes that are read of a file."""
TABLES = {".csv": ",", ".tsv": "\t"}


def labelled(path: Path) -> Check:
    """A file whose first record can be read, or a folder that `datasets` saved, with a fingerprint of how it begins."""
    name = f"data {path.name}"
    if not path.exists():
        return fail(name, f"{path.absolute()} is not there", SHARE_IT)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        heads = [_head(file) for file in files if file.is_file()]
        problem = _problem_of_folder(path) if path.is_dir() else _problem(path.suffix, heads[0])
    except OSError as error:
        return fail(name, f"{path.absolute()}: {error.strerror}", "chmod it so that the training's user may read it")
    if problem:
        return fail(name, f"{path}: {problem}", "mend the file; train.py would stop at it")
    size = sum(file.stat().st_size for file in files)
    digest = hashlib.sha256(b"".join([str(size).encode(), *heads])).hexdigest()[:8]
    return ok(name, f"{path}, {size / 1e6:,.1f} MB, fingerprint {digest}")


def source(path: Path) -> Check:
    """The folder of run.start_from."""
    known = ("config.json", "checkpoints", "manifest.json")
    if any((path / name).exists() for name in known):
        return ok("start_from", str(path))
    what = "is not there" if not path.is_dir() else f"has none of {', '.join(known)}: it is no model"
    return fail(
        "start_from", f"{path.absolute()} {what}", f"give run.start_from a run or a model's folder; or {SHARE_IT}"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)


def _problem_of_folder(path: Path) -> str | None:
    return None if (path / "dataset_info.json").is_file() else "is no folder that `datasets` saved (dataset_info.json)"


def _problem(suffix: str, head: bytes) -> str | None:
    """What is wrong with the first record."""
    if suffix == ".parquet":
        return None if head[:4] == b"PAR1" else "is no Parquet file"
    lines = [line for line in head.decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    if not lines:
        return "holds nothing"
    if suffix == ".jsonl":
        try:
            first = json.loads(lines[0])
        except ValueError as error:
            return f"its first line is not JSON: {error}"
        return None if isinstance(first, dict) else "its first line is no object with fields"
    if suffix in TABLES:
        columns = next(csv.reader(lines[:1], delimiter=TABLES[suffix]))
        return None if len(columns) > 1 else f"its header has one column, {columns[0]!r}"
    words = next((line.split() for line in lines if not line.startswith("-DOCSTART-")), [])
    return None if len(words) > 1 else "its first line has no tag after the word"
