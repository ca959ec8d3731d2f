"""A server as a process of one thread on one core."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile

PYTHON = (sys.executable,)
READY = re.compile(rb"running on (http://\S+)")
START_SECONDS = 60


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen


@contextmanager
def running(command: Sequence[str], core: int) -> Iterator[Server]:
    """A server that says on standard error where it listens; it is stopped at the end."""
    with TemporaryFile() as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stderr=log, env=environment)
        os.sched_setaffinity(process.pid, {core})
        try:
            yield Server(_address(process, log.fileno()), process)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen, log: int) -> str:
    end = time.monotonic() + START_SECONDS
    while True:
        said = os.pread(log, 100_000, 0)
        if ready := READY.search(said):
            return str(ready[1], "ascii")
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not start:\n{str(said, 'utf-8', 'replace')}")
        time.sleep(0.1)
