"""`python -m launch doctor`: alone on a machine it starts ranks of its own, under a launcher it is one of them."""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from config import ConfigError
from config.rendezvous import rendezvous_environment
from launch.doctor import report
from launch.doctor.check import fail
from launch.doctor.examine import Result, examine
from launch.doctor.gpu import visible_gpus
from launch.doctor.ranks import Unreachable, job_ports, meet
from launch.doctor.recipe import read_recipe
from launch.files import write_file

ROOT = Path(__file__).parents[2]
EXAMPLES = """\
One machine:  python -m launch doctor [RECIPE]
SLURM:        srun python -m launch doctor RECIPE
torchrun:     torchrun --nnodes 2 --nproc-per-node 8 … -m launch doctor RECIPE
DeepSpeed:    deepspeed --hostfile hosts --no_local_rank --module launch doctor RECIPE
Accelerate:   accelerate launch --config_file launch/accelerate/… -m launch doctor RECIPE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("recipe", nargs="?", help="also check its folders, its checkpoints' room and its memory")
    parser.add_argument("overrides", nargs="*", help="section.key=value, as for train.py")
    parser.add_argument("--ranks", type=int, help="without a launcher: ranks to start here (default: GPUs, else 2)")
    parser.add_argument(
        "--json", metavar="FILE", help="write the findings there too; - prints them instead of the text"
    )
    parser.add_argument(
        "--timeout", type=float, default=60.0, help="seconds to wait for ranks and for torch (default 60)"
    )


def run(options: argparse.Namespace) -> int:
    """0 if nothing fails, 1 if something does; the same on every rank."""
    environ = dict(os.environ)
    launched = "RANK" in environ or int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if launched and options.ranks is not None:
        raise ConfigError(
            "command line: --ranks starts ranks on one machine; a launcher has already started these: leave it out"
        )
    if not options.timeout > 0:
        raise ConfigError(f"command line: --timeout {options.timeout:g}: give a number of seconds above zero")
    if options.ranks is not None and options.ranks < 1:
        raise ConfigError(f"command line: --ranks {options.ranks}: at least one is needed")
    environ.update(rendezvous_environment(environ, _free_port()))
    if launched:
        return take_part(options, environ)
    ranks = options.ranks or visible_gpus(environ) or 2
    environ["WORLD_SIZE"] = str(ranks)
    others = [_start_rank(rank, options, environ) for rank in range(1, ranks)]
    try:
        return take_part(options, environ)
    finally:
        for process in others:
            _end(process)


def take_part(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """This rank's part; rank 0 prints."""
    started, rank, size = time.monotonic(), int(environ["RANK"]), int(environ["WORLD_SIZE"])
    job = "{} of {} ranks".format(environ.get("SLURM_JOB_ID") or environ.get("TORCHELASTIC_RUN_ID") or "doctor", size)
    needs = read_recipe(options.recipe, options.overrides, size)
    try:
        ranks = meet(rank, size, environ["MASTER_ADDR"], job_ports(environ), job, options.timeout)
        result = examine(ranks, int(environ["LOCAL_RANK"]), environ, needs, options.timeout)
    except (Unreachable, OSError) as problem:
        _print_alone(rank, problem)
        return 1
    if rank == 0:
        show(result, size, time.monotonic() - started, options.json)
    return int(result.failed)


def show(result: Result, ranks: int, seconds: float, file: str | None) -> None:
    """On the screen, and as JSON into a file; `-` is the screen, for JSON alone."""
    facts = report.as_json(result.findings, result.hosts, ranks, seconds, result.measured)
    json_text = json.dumps(facts, indent=1, ensure_ascii=False)
    print(json_text if file == "-" else report.text(result.findings, result.hosts, ranks, seconds))
    if file and file != "-":
        write_file(Path(file), json_text + "\n", "--json")


def _print_alone(rank: int, problem: Exception) -> None:
    """What a rank says that cannot tell rank 0."""
    fix = "MASTER_ADDR has to be rank 0's name or address as this host knows it; its MASTER_PORT and the next ones open"
    found = f"on {socket.gethostname()}: {problem or type(problem).__name__}"
    print(report.shown(report.Line(fail(f"rank {rank}", found, fix), []), 0, 1), file=sys.stderr)


def _start_rank(rank: int, options: argparse.Namespace, environ: Mapping[str, str]) -> subprocess.Popen:
    """Another rank of this machine."""
    command = [sys.executable, "-m", "launch", "doctor", "--timeout", str(options.timeout)]
    command += [options.recipe, *options.overrides] if options.recipe else []
    theirs = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    theirs["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(command, env=theirs)


def _end(process: subprocess.Popen, seconds: float = 5) -> None:
    """It ends by itself unless it is stuck."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
