"""Prompts typed at a terminal, and what the model makes of them."""

import argparse
import readline
import sys
from contextlib import suppress
from pathlib import Path

from config import GroundworkError
from model.sampling import Sampling
from tasks.checkpoints import Trained
from tasks.generate import SAMPLING, stream_text

HISTORY = Path.home() / ".groundwork_history"
KINDS: dict[str, type] = {"tokens": int, "top_k": int, "seed": int}
CHANGEABLE = ("tokens", *SAMPLING, "stop")
HELP = """Type a text, and the model goes on from it. Ctrl-C stops the text, Ctrl-D leaves.
/settings            what texts are drawn with
/temperature 0.5     change a setting; none unsets it; /stop TEXT ends texts there
/help                this"""


def converse(trained: Trained, options: argparse.Namespace) -> None:
    """Ask for prompts until Ctrl-D; a line that begins with / shows or changes settings."""
    with suppress(OSError):
        readline.read_history_file(HISTORY)
    print(HELP)
    while True:
        try:
            line = input("\n> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            print()
            break
        try:
            if line.startswith("/"):
                print(command(line[1:], options))
            elif line:
                stream_text(trained, line, options)
        except KeyboardInterrupt:
            print("[stopped]")
        except GroundworkError as error:
            print(f"error: {error}", file=sys.stderr)
    with suppress(OSError):
        readline.write_history_file(HISTORY)


def command(line: str, options: argparse.Namespace) -> str:
    """Carry out what followed the /; the answer. Raises ConfigError for values that sampling refuses."""
    name, _, value = line.strip().partition(" ")
    name = name.replace("-", "_")
    if name == "settings":
        return "  ".join(f"{name} {getattr(options, name)}" for name in CHANGEABLE)
    if name not in CHANGEABLE or not value:
        return HELP
    if name == "stop":
        options.stop = [] if value == "none" else [value]
        return f"stop {options.stop}"
    try:
        new: float | None = None if value == "none" else KINDS.get(name, float)(value)
    except ValueError:
        return f"{name} takes a number or none, not {value!r}"
    if new is None and name in ("tokens", "temperature", "repetition_penalty"):
        return f"{name} has to be a number"
    if name == "tokens" and new is not None and new < 1:
        return f"tokens has to be at least 1, not {new}"
    if name != "tokens":
        Sampling(**{key: getattr(options, key) for key in SAMPLING} | {name: new})
    setattr(options, name, new)
    return f"{name} {new}"
