"""`python -m tasks COMMAND …`"""

import argparse
import os
import sys

from config import GroundworkError
from tasks import embed, evaluate, export, finetune, generate, neighbours, serve

COMMANDS = {
    "embed": embed,
    "evaluate": evaluate,
    "export": export,
    "finetune": finetune,
    "generate": generate,
    "neighbours": neighbours,
    "serve": serve,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks", description="Use a trained model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
    options, others = parser.parse_known_args(arguments)
    if others and ("overrides" not in options or any(other.startswith("-") for other in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:  # argparse finds section.key=value before the options alone
        options.overrides += others
    try:
        return COMMANDS[options.command].run(options)
    except GroundworkError as error:
        if not getattr(error, "everywhere", False) or os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
