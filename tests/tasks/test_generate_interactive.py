"""`tasks generate` at a terminal: a real one, typed at."""

import argparse
import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from config import ConfigError
from config.objective_schema import CausalLM
from data.tokenizer import byte_tokenizer
from tasks.checkpoints import Trained
from tasks.generate import add_arguments
from tasks.generate_interactive import command, converse
from tests.model.tiny import tiny_config, tiny_model


def options(*more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["somewhere", *more])


class Typist:
    """A terminal with `converse` at its other end."""

    def __init__(self, home: Path, *more: str):
        self.seen = ""
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__  # not pytest's
            signal.signal(signal.SIGINT, signal.default_int_handler)
            config = tiny_config(vocab_size=257, max_positions=4096)
            trained = Trained(tiny_model(config), byte_tokenizer(), config, CausalLM(), None)
            import tasks.generate_interactive as room

            room.HISTORY = home / "history"
            converse(trained, options(*more))
            sys.stdout.flush()
            os._exit(0)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, seconds: float = 30) -> str:
        """What the terminal showed up to the pattern, which is then forgotten."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            self.seen += os.read(self.terminal, 4096).decode(errors="replace")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown


def test_a_conversation(tmp_path):
    typist = Typist(tmp_path, "--tokens", "5", "--temperature", "0")
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
    assert os.waitpid(typist.child, 0)[1] == 0
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
