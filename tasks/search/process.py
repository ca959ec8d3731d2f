"""The training of a trial as a process group, and the metrics it writes."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from config import ConfigError

PATIENCE_SECONDS = 100.0
"""That the training of a dead worker gets to finish its step, save and leave; less than after which this one seems dead."""

STRAGGLER_SECONDS = 60.0
"""That ranks may go on saving after their launcher has left."""


class Training:
    """A started train.py. Its log is appended to."""

    def __init__(self, command: list[str], log: Path, environ: dict[str, str]):
        self.log = log
        self._code = log.with_suffix(".code")
        self._code.unlink(missing_ok=True)
        environ = {**environ, "EXIT_CODE_FILE": str(self._code.absolute())}
        with log.open("ab") as output:
            self._begins = output.tell()
            self._process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environ, start_new_session=True
            )
        self.pid = self._process.pid
        self._left = 0.0

    def stop(self) -> None:
        """Ask all of its ranks to finish their step, to save and to leave."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)

    def ended(self) -> int | None:
        """The exit code of train.py, which launchers hide, or of the launcher; None while it runs."""
        if self._process.poll() is None:
            return None
        self._left = self._left or time.monotonic()
        if _lives(self.pid) and time.monotonic() - self._left < STRAGGLER_SECONDS:
            return None
        self.kill()
        code = int(self._code.read_text()) if self._code.exists() else self._process.returncode
        self._code.unlink(missing_ok=True)
        return code

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def last_words(self) -> str:
        """Its error, or else the last lines of this start's log."""
        with self.log.open("rb") as log:
            log.seek(self._begins)
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return "\n".join(lines[errors[0] :][:5] if errors else lines[-5:]).removeprefix("error: ")


class Metrics:
    """The records of a growing metrics.jsonl, each once. A run that continues writes a new file without the steps that it
    does again."""

    def __init__(self, path: Path):
        self.path = path
        self._inode = self._read = 0

    def new(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._inode, self._read = inode, 0
            file.seek(self._read)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._read += len(whole) + 1
        return [json.loads(line) for line in whole.splitlines()]


def end_group(pid: int) -> None:
    """Ask a process group that this process did not start to save and leave, and see to it that it does."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        while _lives(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(pid, signal.SIGKILL)


def _lives(group: int) -> bool:
    """Whether any process of a group is more than a zombie."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def share_of_machine(place: int, jobs: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment of one of `jobs` trainings that run at the same time: its part of the GPUs, or of the cores.

    Raises ConfigError if there are more of them than GPUs.
    """
    if jobs == 1:
        return dict(environ)
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]
    gpus = [name for name in shown.split(",") if name] if shown is not None else cards
    if not gpus:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = str(max(cores // jobs, 1))
        return {"OMP_NUM_THREADS": threads, **environ}
    each = len(gpus) // jobs
    if not each:
        raise ConfigError(
            f"--jobs {jobs} trains more at a time than there are GPUs ({len(gpus)}): give at most {len(gpus)}, or start the "
            "same command several times, each with its own CUDA_VISIBLE_DEVICES"
        )
    return {**environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus[place * each : (place + 1) * each])}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
