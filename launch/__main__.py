"""`python -m launch COMMAND …`"""

import sys
from types import ModuleType

from config.commands import run_command
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
    return run_command("launch", "Plan a run, start it, and find it again.", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
