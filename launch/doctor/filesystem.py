"""Disks: whether hosts see each other's files, how fast they are, and whether a checkpoint fits."""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from config.plan import gigabytes
from launch.doctor.check import Check, fail, ok, skip, warn
from launch.doctor.fold import fold_names

GB = 1e9
BLOCK = 4 * 2**20
MOST, SECONDS = 64 * 2**20, 1.0
"""Bytes and seconds after which the speed of a disk is known well enough."""
SHARE_IT = "put it on storage that all nodes mount (run.folder, the data), and name it by the same absolute path"


def nearest(path: Path) -> Path:
    """The folder itself, or where it would be made."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


class Letters:
    """Temporary files of this doctor in the run folder, which the other hosts look for."""

    def __init__(self, folder: Path, rank: int):
        self.folder, self.rank, self.token = nearest(folder), rank, ""

    def write(self, token: str) -> None:
        """`token` names the files of this examination. A folder that takes none is a finding of `run_folder`."""
        self.token = token
        with suppress(OSError):
            self._path(self.rank).write_text(f"{token} {self.rank}")

    def _path(self, name: int | str) -> Path:
        return self.folder / f".doctor_{self.token}_{name}"

    def wait_for(self, ranks: Iterable[int], seconds: float) -> tuple[list[int], float]:
        """Those of `ranks` whose letter does not come in time, and the seconds that the others took."""
        missing, started = list(ranks), time.monotonic()
        while True:
            missing = [rank for rank in missing if not self._is_readable(rank)]
            waited = time.monotonic() - started
            if not missing or waited > seconds:
                return missing, waited
            time.sleep(0.02)

    def _is_readable(self, rank: int) -> bool:
        try:
            return self._path(rank).read_text() == f"{self.token} {rank}"
        except OSError:
            return False

    def speed(self, checkpoint_bytes: int) -> Check:
        """MB/s of writing (to the disk, not to memory) and of reading back."""
        path, block, name = self._path(f"{self.rank}_speed"), os.urandom(BLOCK), "disk speed"
        try:
            with open(path, "wb", buffering=0) as file:
                written, seconds = _timed(lambda: file.write(block), lambda: os.fsync(file.fileno()))
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # so that reading asks the disk
            with open(path, "rb", buffering=0) as file:
                read, reading = _timed(lambda: len(file.read(BLOCK)), lambda: None)
        finally:
            path.unlink(missing_ok=True)
        writes = written / seconds / 1e6
        found = f"{writes:,.0f} MB/s written, {read / reading / 1e6:,.0f} MB/s read"
        if checkpoint_bytes > written / seconds:  # more than a second
            found += f"; a checkpoint of {gigabytes(checkpoint_bytes)} written by one host takes "
            found += f"{checkpoint_bytes / 1e6 / writes:,.0f} s"
        if writes < 50:
            return warn(name, found, "save less often (checkpoint.every_steps) or run on faster storage")
        return ok(name, found)

    def remove(self) -> None:
        self._path(self.rank).unlink(missing_ok=True)


def _timed(transfer, finish) -> tuple[int, float]:
    """Bytes moved and seconds taken, until MOST bytes, SECONDS or the end."""
    total, started = 0, time.perf_counter()
    while total < MOST and time.perf_counter() - started < SECONDS:
        moved = transfer()
        total += moved
        if not moved:
            break
    finish()
    return total, time.perf_counter() - started


def judge_letters(letters: Letters, missing: list[int], waited: float, host_of: Sequence[str], hosts: int) -> Check:
    """Whether this host saw the letters of the others."""
    name = "shared folder"
    if hosts == 1:
        return skip(name, "one host")
    if missing:
        who = "any other host" if len(missing) == hosts - 1 else fold_names([host_of[rank] for rank in missing])
        found = f"{letters.folder}: what {who} wrote did not appear in {waited:.0f} s"
        return fail(name, found, SHARE_IT)
    if waited > 2:
        fix = "mount it with a shorter attribute cache (actimeo=1): resuming right after a save may miss the newest"
        return warn(name, f"{letters.folder}: files of other hosts appear after {waited:.1f} s", fix)
    return ok(name, f"{letters.folder}: files of other hosts appear within {max(waited, 0.1):.1f} s")


def run_folder(folder: Path, checkpoint_bytes: int, keep: int, statvfs=os.statvfs) -> Check:
    """Whether it can be written and holds `keep` checkpoints and the one being written."""
    name, parent = "run folder", nearest(folder)
    where = str(folder.absolute()) if parent == folder.absolute() else f"{folder.absolute()} (to be made)"
    if not os.access(parent, os.W_OK | os.X_OK):
        return fail(name, f"{where}: no right to write in {parent}", "run.folder=… where you may write, or chown it")
    space = statvfs(parent)
    free = space.f_bavail * space.f_frsize
    found = f"{where}: {free / GB:,.1f} GB free"
    fix = "delete old runs, checkpoint.keep_last=1, or run.folder=… on a larger disk"
    if space.f_files and space.f_favail < 1000:
        return fail(name, f"{found}, but only {space.f_favail:,} more files (inodes)", "delete small files there")
    if not checkpoint_bytes:
        return ok(name, found) if free > GB else warn(name, found, fix)
    needed = f"a checkpoint takes {gigabytes(checkpoint_bytes)}, {keep} are kept while one more is written"
    if free < checkpoint_bytes:
        return fail(name, f"{found}; {needed}", fix)
    if free < checkpoint_bytes * (keep + 1):
        return warn(name, f"{found}; {needed}", fix)
    return ok(name, f"{found}; {needed}")


def dataset(path: Path) -> Check:
    """A prepared dataset, with a fingerprint of its manifest by which hosts compare what they have."""
    name = f"data {path.name}"
    if not path.is_dir():
        return fail(name, f"{path.absolute()} is not there", f"python -m data prepare … --out {path}; or {SHARE_IT}")
    manifest = path / "manifest.json"
    if not manifest.is_file():
        return fail(name, f"{path} has no manifest.json: it is not finished", f"python -m data prepare … --out {path}")
    started = time.perf_counter()
    digest = hashlib.sha256(manifest.read_bytes()).hexdigest()[:8]
    milliseconds = 1000 * (time.perf_counter() - started)
    found = f"{path}, manifest {digest}"
    if milliseconds > 1000:
        fix = "copy the dataset to the nodes' own disks, or wait until the storage is less busy"
        return warn(name, f"{found} took {milliseconds:,.0f} ms to read", fix)
    return ok(name, found)


def caches(environ: Mapping[str, str], statvfs=os.statvfs) -> Check:
    """Where libraries write without being asked."""
    home = Path(environ.get("HOME", "/root"))
    folders = {
        "TMPDIR": Path(environ.get("TMPDIR", tempfile.gettempdir())),
        "HF_HOME": Path(environ.get("HF_HOME", home / ".cache/huggingface")),
        "TRITON_CACHE_DIR": Path(environ.get("TRITON_CACHE_DIR", home / ".triton")),
        "TORCH_EXTENSIONS_DIR": Path(environ.get("TORCH_EXTENSIONS_DIR", home / ".cache/torch_extensions")),
    }
    free = {}
    for variable, folder in folders.items():
        space = statvfs(nearest(folder))
        free[variable] = space.f_bavail * space.f_frsize / GB
    full = [f"{variable} ({folders[variable]}) {size:.1f} GB free" for variable, size in free.items() if size < 2]
    if full:
        fix = "export it to a folder on a larger disk; compiled kernels, tokenizers and downloads go there"
        return warn("caches", ", ".join(full), fix)
    return ok("caches", f"{min(free.values()):,.1f} GB free or more in {', '.join(folders)}")
