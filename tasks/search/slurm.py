"""A search as a SLURM job array: each element is a worker that runs the same command on the same study, its trainings by srun."""

import argparse
import shlex
import subprocess
import sys

from config import ConfigError
from tasks.search.question import Question

PASSED_ON = ("trials", "name", "sampler", "seed", "pruner", "reduction", "min_steps", "value", "storage")
"""Options of a search that its workers need, too."""


def submit(question: Question, options: argparse.Namespace) -> int:
    """Write the script, and submit it if asked, by `python -m launch slurm`. Returns its exit code."""
    if options.launcher or options.jobs > 1:
        raise ConfigError("--slurm trains by srun, one trial at a time in each worker: leave --launcher and --jobs out")
    words = ["-m", "launch", "slurm", question.typed, *question.overrides, *shlex.split(options.slurm)]
    words += ["--job-name", question.name, "--workers", str(options.workers or 1), "--driver", worker_command(options)]
    return subprocess.run([sys.executable, *words]).returncode


def worker_command(options: argparse.Namespace) -> str:
    """The module and the arguments of a worker, but for the launcher."""
    words = ["tasks", "search", options.recipe, *options.overrides]
    words += [word for text in options.space for word in ("--space", text)]
    given = {name: getattr(options, name) for name in PASSED_ON}
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    return shlex.join([*words, *["--keep-checkpoints"] * options.keep_checkpoints])
