"""end a run under SLURM; it saves first"""

import argparse
import subprocess

from config import ConfigError
from launch.slurm.jobs import find_jobs, slurm_command
from launch.slurm.status import add_runs_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="name of a run, job or recipe, or a job's number")
    parser.add_argument("--now", action="store_true", help="without saving")
    add_runs_argument(parser)


def run(options: argparse.Namespace) -> int:
    jobs = [job for job in find_jobs(options.run, options.runs) if job.alive]
    if not jobs:
        raise ConfigError(f"{options.run} has no job that waits or runs")
    for job in jobs:
        # TERM to the tasks, not to the script: train.py saves and exits with 143, and the script does not requeue.
        gently = job.state == "RUNNING" and not options.now
        command = [slurm_command("scancel"), *(["--signal=TERM"] if gently else []), str(job.number)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise ConfigError(f"scancel {job.number}: {result.stderr.strip()}")
        what = "was asked to save and end" if gently else "is cancelled"
        print(f"{job.run}: job {job.number} {what}; the same command continues the run from its newest checkpoint")
    return 0
