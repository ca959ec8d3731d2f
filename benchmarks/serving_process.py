"""A server as a process of one thread on one core."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

PYTHON = (sys.executable,)
READY = re.compile(rb"running on (http://\S+)")
START_SECONDS = 60


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen

    def cpu_seconds(self) -> float:
        """Time that it has computed so far, which others on a busy machine do not lengthen."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
