"""`train.py` in a process that gets no more memory than it has when its first step begins."""

import resource
from pathlib import Path

import engine.engine
from tests.conftest import run_command


def run(command: list[str]) -> None:
    step = engine.engine.Engine.step

    def limited_step(self, index, micro_batches):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 20_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return step(self, index, micro_batches)

    engine.engine.Engine.step = limited_step
    run_command(command)
