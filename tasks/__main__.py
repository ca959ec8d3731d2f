"""`python -m tasks COMMAND …`"""

import sys
from types import ModuleType

from config.commands import run_command
from tasks import embed, evaluate, export, finetune, generate, neighbours, search, serve

COMMANDS: dict[str, ModuleType] = {
    "embed": embed,
    "evaluate": evaluate,
    "export": export,
    "finetune": finetune,
    "generate": generate,
    "neighbours": neighbours,
    "search": search,
    "serve": serve,
}


def main(arguments: list[str]) -> int:
    return run_command("tasks", "Use a trained model.", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
