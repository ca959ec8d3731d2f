"""`tasks generate` at a terminal: a real one, typed at."""

import argparse
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from config import ConfigError
from tasks.generate import add_arguments
from tasks.generate_interactive import command
from tests.conftest import ROOT, environment


def options(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["somewhere", *more])


class Typist:
    """A terminal with `converse` at its other end."""

    def __init__(self, history: Path, *more: str):
        self.seen = ""
        self.terminal, other_end = pty.openpty()
        command = [sys.executable, "-m", "tests.workers.conversation", str(history), *more]
        ends = {"stdin": other_end, "stdout": other_end, "stderr": other_end}
        self.child = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True, **ends)
        os.close(other_end)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """What the terminal showed up to the pattern, which is then forgotten."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.terminal], [], [], max(end - time.monotonic(), 0))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.terminal, 4096).decode(errors="replace")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown


def test_a_conversation(tmp_path):
    typist = Typist(tmp_path / "history", "--tokens", "5", "--temperature", "0")
    typist.wait_for("Ctrl-D leaves")
    typist.wait_for("> ")
    typist.type("the model\n")
    typist.wait_for("the model\r\n")  # the echo
    first = typist.wait_for("the model.*\n")
    typist.wait_for("> ")
    typist.type("/tokens 4000\n")
    typist.wait_for("tokens 4000\r\n.*tokens 4000|tokens 4000\r\n")
    typist.wait_for("> ")
    typist.type("the model\n")
    typist.wait_for("the model\r\n")
    typist.wait_for("the model")
    typist.type("\x03")
    typist.wait_for(r"\[stopped\]")
    typist.wait_for("> ")
    typist.type("/tokens 5\n")
    typist.wait_for("> ")
    typist.type("\x1b[A\x1b[A\n")  # two lines up in the history
    typist.wait_for("the model\r\n")
    assert typist.wait_for("the model.*\n") == first
    typist.wait_for("> ")
    typist.type("\x04")
    assert typist.child.wait(30) == 0
    assert "/tokens 4000" in (tmp_path / "history").read_text()


def test_settings_are_shown_and_changed():
    changed = options()
    assert command("temperature 0.25", changed) == "temperature 0.25" and changed.temperature == 0.25
    assert command("top-k 7", changed) == "top_k 7" and changed.top_k == 7
    assert command("top_k none", changed) == "top_k None"
    assert command("stop END", changed) == "stop ['END']" and changed.stop == ["END"]
    assert "temperature 0.25" in command("settings", changed) and "top_k None" in command("settings", changed)
    assert "takes a number" in command("seed red", changed) and "at least 1" in command("tokens 0", changed)
    assert "Ctrl-C" in command("unknown", changed)
    with pytest.raises(ConfigError, match="top_p 3 is not a probability"):
        command("top_p 3", changed)
    assert changed.top_p == 0.95
