"""The jobs of our runs: a record of each beside the runs, and what SLURM says of them.

RUNS/slurm/NAME/
    job.sbatch          the script
    job.json            the record
    1234.log            the script's own output; 1234_0.log for an element of a sweep
    1234/rank_0.log …   what each rank prints
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from config import ConfigError, load_recipe
from launch.files import write_file

RECORD = "job.json"
ENDED = {
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}


@dataclass(frozen=True)
class Record:
    """What one script trains, and the jobs it was submitted as."""

    folder: Path
    recipe: str
    run_folder: str
    """Parent of the runs' folders."""
    runs: tuple[str, ...]
    """Names of the runs, in the order of the job array if it is a sweep."""
    sweep: bool
    submitted: tuple[str, ...] = ()
    """Numbers of the jobs that --submit made, oldest first."""

    @property
    def newest(self) -> str | None:
        """Number of the newest job, also of one that was submitted by hand and has begun to log."""
        logs = {path.stem.partition("_")[0] for path in self.folder.glob("[0-9]*.log")}
        return max(logs | set(self.submitted), key=int, default=None)

    def answers_to(self, name: str) -> bool:
        """Whether `name` is the job's, one of its runs', its recipe's, or a number."""
        numbers = {*self.submitted, self.newest}
        return name in (self.folder.name, Path(self.recipe).stem, *self.runs) or name.partition("_")[0] in numbers

    def write(self) -> None:
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        write_file(self.folder / RECORD, json.dumps(values, indent=1), "run.folder")


@dataclass(frozen=True)
class Job:
    """A run and its newest job, if there is one."""

    record: Record
    run: str
    number: str | None
    """`12`, or `12_0` for an element of an array."""
    fields: dict[str, str]
    """What `scontrol show job` prints; empty if SLURM no longer knows the job."""

    @property
    def state(self) -> str:
        return self.fields.get("JobState", "UNKNOWN")

    @property
    def alive(self) -> bool:
        """Whether it trains or will."""
        return bool(self.fields) and self.state not in ENDED

    @property
    def run_folder(self) -> Path:
        return Path(self.record.run_folder) / self.run

    def log(self, rank: int | None) -> Path:
        """What a rank printed, or with None what the script itself did."""
        name = f"{self.number}.log" if rank is None else f"{self.number}/rank_{rank}.log"
        return self.record.folder / name


def read_record(folder: Path) -> Record | None:
    """The record of a job's folder, None if it has none."""
    if not (folder / RECORD).exists():
        return None
    values: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return Record(folder, **{**values, "runs": tuple(values["runs"]), "submitted": tuple(values["submitted"])})


def jobs_of(record: Record) -> list[Job]:
    """Each run of a record with its newest job, as SLURM sees it now."""
    newest, known = record.newest, {}
    if newest:
        known = {fields["number"]: fields for fields in _show(newest)}
    numbers = [f"{newest}_{i}" if record.sweep else newest for i in range(len(record.runs))]
    return [
        Job(record, run, number if newest else None, known.get(number or "", {}))
        for run, number in zip(record.runs, numbers, strict=True)
    ]


def find_jobs(name: str | None, run_folder: str) -> list[Job]:
    """The jobs that `name` means: a job's number, the name of a job, a run or a recipe; None is all there are.

    Raises ConfigError if there is none, and if SLURM's commands are missing.
    """
    slurm_command("scontrol")
    if name and Path(name).suffix in (".yaml", ".yml") and Path(name).exists():
        config = load_recipe(name)
        name, run_folder = config.run.name, config.run.folder
    found = (read_record(path.parent) for path in sorted(Path(run_folder).glob(f"slurm/*/{RECORD}")))
    records = [record for record in found if record]
    jobs = [job for record in records if name is None or record.answers_to(name) for job in jobs_of(record)]
    if name is not None and not jobs:
        raise _unknown(name, records, run_folder)
    return [job for job in jobs if name in (job.run, job.number)] or jobs


def _unknown(name: str, records: list[Record], run_folder: str) -> ConfigError:
    names = sorted({name for record in records for name in (record.folder.name, *record.runs)})
    close = get_close_matches(name, names, 1)
    guess = f"; did you mean {close[0]}?" if close else "."
    return ConfigError(
        f"{name}: `python -m launch slurm` wrote no run or job of that name or number under {run_folder}/slurm{guess} "
        f"It knows {', '.join(names[:10]) or 'none'}"
    )


def one_job(name: str, run_folder: str) -> Job:
    """The job that `name` means. Raises ConfigError if it is a sweep of several."""
    jobs = find_jobs(name, run_folder)
    if len(jobs) > 1:
        raise ConfigError(f"{name} means several runs: choose one of {', '.join(job.run for job in jobs)}")
    return jobs[0]


def slurm_command(name: str) -> str:
    """Path of one of SLURM's commands. Raises ConfigError if it is not there."""
    found = shutil.which(name)
    if not found:
        raise ConfigError(
            f"{name} was not found: SLURM's commands are not on this machine, or not on PATH. Run this on a login node of "
            "the cluster, after `module load slurm` where it needs one"
        )
    return found


def _show(number: str) -> list[dict[str, str]]:
    """Fields of a job or of each of its elements, with `number` added; empty if SLURM has forgotten it."""
    result = subprocess.run([slurm_command("scontrol"), "show", "job", number, "-o"], capture_output=True, text=True)
    if result.returncode and "Invalid job id" not in result.stderr:
        raise ConfigError(f"scontrol show job {number}: {result.stderr.strip()}")
    found = []
    for line in result.stdout.splitlines():
        fields = dict(re.findall(r"(?:^|\s)(\w+)=(\S*)", line))
        elements = _elements(fields["ArrayTaskId"]) if "ArrayTaskId" in fields else [None]
        base = fields.get("ArrayJobId", fields["JobId"])
        found += [{**fields, "number": base if i is None else f"{base}_{i}"} for i in elements]
    return found


def _elements(text: str) -> list[int]:
    """Those of an array that still wait share a line: `0-2,5%1`."""
    ranges = (part.split("-") for part in text.partition("%")[0].split(","))
    return [i for bounds in ranges for i in range(int(bounds[0]), int(bounds[-1]) + 1)]
