"""`python -m launch COMMAND …`"""

import argparse
import sys
from types import ModuleType

from config import GroundworkError
from launch import accelerate_config

COMMANDS: dict[str, ModuleType] = {
    "accelerate": accelerate_config,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch", description="Plan a run, start it, and find it again.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except GroundworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
