"""`python -m ROOM COMMAND …`: one module a command, with its help as docstring, `add_arguments(parser)` and `run(options)`."""

import argparse
import os
import sys
from collections.abc import Mapping
from types import ModuleType

from config.errors import GroundworkError


def run_command(room: str, help: str, commands: Mapping[str, ModuleType], arguments: list[str]) -> int:
    """Run the command that `arguments` name. Returns the exit code: the command's own, 2 for a wrong input or a file
    that cannot be read or written (the message is printed to stderr), 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog=f"python -m {room}", description=help)
    names = parser.add_subparsers(dest="command", required=True)
    for name, module in commands.items():
        module.add_arguments(
            names.add_parser(name, help=module.__doc__, description=module.__doc__, allow_abbrev=False)
        )
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest):
        options.overrides += rest  # argparse takes them in one piece only, and people put them anywhere
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return int(commands[options.command].run(options))
    except (GroundworkError, OSError) as error:
        if not getattr(error, "everywhere", False) or os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
