"""A debugger at one rank, typed into through a real terminal."""

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, losses

PROGRAM = """
import os, sys
import engine.engine
import train

step = engine.engine.Engine.step

def {name}(self, index, micro_batches):
    rank = self.world.rank
    {body}
    return step(self, index, micro_batches)

engine.engine.Engine.step = {name}
code = train.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""
STOP = "if index == 1: breakpoint()  # every rank comes here"
FAIL = "secret = [6, 7]; assert index == 0, 'planted'"


def converse(command: list[str], answers: list[str], seconds: float = 100) -> tuple[int, str]:
    """Run a command in a terminal, type one answer at each debugger's prompt; its exit code and what was on the screen."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT))
    )
    os.close(theirs)
    screen, typed, deadline = b"", 0, time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                screen += os.read(terminal, 1 << 16)
            except OSError:  # the last process has closed it
                break
        if screen.count(b"(Pdb) ") > typed:
            assert typed < len(answers), screen.decode()
            os.write(terminal, answers[typed].encode() + b"\n")
            typed += 1
    os.close(terminal)
    process.kill() if process.poll() is None and time.monotonic() >= deadline else None
    return process.wait(), screen.decode()


def program(folder: Path, name: str, body: str) -> str:
    path = folder / "program.py"
    path.write_text(PROGRAM.format(name=name, body=body))
    return str(path)


@pytest.mark.slow
def test_a_breakpoint_at_rank_1_of_2_under_torchrun(recipe, tmp_path):
    launch = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    command = [*launch, program(tmp_path, "stopping_step", STOP), str(recipe), "--debug-rank", "1"]
    code, screen = converse(
        [*command, "engine.communication_timeout=2"], ["import time; time.sleep(4)", "p rank * 42, index", "c"]
    )
    assert code == 0, screen
    assert "(42, 1)" in screen and "is complete: 12 steps" in screen
    assert screen.count("(Pdb) ") == 3, "rank 0 was not asked"
    assert len(losses(tmp_path / "runs/tiny")) == 12


@pytest.mark.slow
def test_an_exception_under_debug_opens_a_post_mortem_where_it_happened(recipe, tmp_path):
    command = [sys.executable, program(tmp_path, "failing_step", FAIL), str(recipe), "--debug"]
    code, screen = converse(command, ["p secret", "q"])
    assert "AssertionError: planted" in screen and "[6, 7]" in screen
    assert code != 0
