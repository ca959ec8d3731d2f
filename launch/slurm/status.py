"""how far the runs under SLURM are"""

import argparse
import json
import time
from pathlib import Path

from config import load_recipe
from launch.slurm.jobs import Job, find_jobs

TAIL_BYTES = 1 << 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", help="name of a run, job or recipe, or a job's number (default: all)")
    add_runs_argument(parser)


def add_runs_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", default="runs", metavar="FOLDER", help="run.folder of the recipe (default runs)")


def run(options: argparse.Namespace) -> int:
    jobs = find_jobs(options.run, options.runs)
    print(
        "\n".join(map(describe, jobs)) or f"no job was written by `python -m launch slurm` under {options.runs}/slurm"
    )
    return 0


def describe(job: Job) -> str:
    """A few lines about a run: its job, its progress, its log."""
    lines = [f"{job.run:<24} {_job_in_words(job)}"]
    progress = _progress(job.run_folder)
    if progress:
        lines.append(f"  {progress}")
    if job.number and job.log(0).exists():
        lines.append(f"  {job.log(0)}")
    return "\n".join(lines)


def _job_in_words(job: Job) -> str:
    if job.number is None:
        return f"not submitted yet: sbatch {job.record.folder}/job.sbatch"
    if not job.fields:
        return f"job {job.number} has ended, and SLURM no longer knows how: {job.log(None)}"
    text = f"job {job.number} {job.state}"
    if job.state == "RUNNING":
        text += f" for {job.fields['RunTime']} of {job.fields['TimeLimit']} on {job.fields['NodeList']}"
    elif job.state == "PENDING":
        text += f" ({job.fields['Reason']})"
    elif job.state == "FAILED":
        text += f" with exit code {job.fields['ExitCode'].partition(':')[0]}: {job.log(None)}"
    restarts = int(job.fields.get("Restarts", 0))
    return text + (f", restarted {restarts} ×" if restarts else "")


def _progress(run_folder: Path) -> str:
    """The last line of the run's metrics, in words; empty if it has none yet."""
    metrics = run_folder / "metrics.jsonl"
    if not metrics.exists():
        return ""
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    last = next((record for record in reversed(records) if "loss" in record), None)
    if last is None:
        return ""
    steps = load_recipe(str(run_folder / "recipe.yaml")).schedule.steps
    age = time.time() - metrics.stat().st_mtime
    return (
        f"step {last['step']:,}/{steps:,}, loss {last['loss']:.4f}, {last['tokens_per_second']:,.0f} tokens/s, "
        f"{age:,.0f} s ago"
    )
