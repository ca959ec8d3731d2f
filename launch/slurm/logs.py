"""what a run under SLURM prints"""

import argparse
import sys
import time
from typing import BinaryIO

from config import ConfigError
from launch.slurm.jobs import one_job
from launch.slurm.status import add_runs_argument

POLL_SECONDS = 0.5
ASK_SLURM_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="name of a run, or a job's number")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the job has ended, over its restarts")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--rank", type=int, default=0, metavar="N", help="rank to listen to (default 0)")
    which.add_argument(
        "--job", action="store_true", help="the script's own output: starts, signals, exit codes, requeues"
    )
    add_runs_argument(parser)


def run(options: argparse.Namespace) -> int:
    job = one_job(options.run, options.runs)
    path = job.log(None if options.job else options.rank)
    while options.follow and job.alive and not path.exists():
        time.sleep(POLL_SECONDS)
        job = one_job(options.run, options.runs)
    if job.number is None or not path.exists():
        raise ConfigError(f"{options.run} has no log yet: {path} does not exist (job {job.number}, {job.state})")
    with path.open("rb") as file:
        pour(file)
        while options.follow and job.alive:
            until = time.monotonic() + ASK_SLURM_SECONDS
            while time.monotonic() < until:
                time.sleep(POLL_SECONDS)
                pour(file)
            job = one_job(options.run, options.runs)
        pour(file)
    return 0


def pour(file: BinaryIO) -> None:
    """Everything that has been written since, to the screen."""
    sys.stdout.buffer.write(file.read())
    sys.stdout.buffer.flush()
