"""`python -m launch COMMAND …`"""

import argparse
import sys
from types import ModuleType

from config import GroundworkError
from launch import accelerate_config, doctor, hostfile, plan
from launch.kubernetes import manifest
from launch.slurm import cancel, logs, status, submit

COMMANDS: dict[str, ModuleType] = {
    "accelerate": accelerate_config,
    "cancel": cancel,
    "doctor": doctor,
    "hostfile": hostfile,
    "kubernetes": manifest,
    "logs": logs,
    "plan": plan,
    "slurm": submit,
    "status": status,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch", description="Plan a run, start it, and find it again.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__, description=module.__doc__))
    options, rest = parser.parse_known_args(arguments)
    if rest and hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest):
        options.overrides += rest  # argparse takes them in one piece only, and people put them anywhere
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return COMMANDS[options.command].run(options)
    except GroundworkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
