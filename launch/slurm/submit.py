"""write the sbatch script of a training or a sweep, and submit it"""

import argparse
import subprocess
import sys
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

from config import ConfigError
from config.load import display_path
from launch.files import write_file
from launch.slurm.jobs import Record, jobs_of, read_record, slurm_command
from launch.slurm.request import SlurmJob, check_job, is_array, log_folder, run_names
from launch.slurm.script import sbatch_script

HINTS = {
    "account": "`sacctmgr show associations user=$USER` lists your accounts, --account chooses one",
    "qos": "`sacctmgr show qos` lists them, --qos chooses one",
    "partition": "`sinfo -o '%P %D %G %l'` lists the partitions with their nodes, GPUs and longest --time; --partition chooses one",
    "": "`sinfo -o '%P %D %G %c %m %l'` lists each partition's nodes, with their GPUs, cores, memory and longest --time",
}
"""What to do about a refusal of sbatch that contains the word."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(option: str, about: str, field: str = "", **settings: Any) -> None:
        """An option for a field of SlurmJob, with its default."""
        dest = field or option.strip("-").replace("-", "_")
        default = getattr(SlurmJob, dest)
        shown = f"{about} (default {default})" if default else about
        parser.add_argument(option, dest=dest, default=default or None, help=shown, **settings)

    parser.add_argument("recipe", help="name or path, as for train.py")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings, as for train.py")
    many: dict[str, Any] = {"action": "append"}
    add("--nodes", "nodes", type=int)
    add("--gpus-per-node", "GPUs of each node, each one rank; 0: one rank on the CPU of each node", type=int)
    add("--time", "time limit, [days-]hours:minutes:seconds")
    add("--array", "an axis of a sweep, as optimizer.lr=1e-3,3e-4; may be repeated", metavar="AXIS", **many)
    add("--array-limit", "runs of the sweep that train at the same time", type=int, metavar="N")
    add("--driver", "what starts trainings itself, as `tasks search` does; it writes this option", metavar="COMMAND")
    add("--workers", "elements of a job array that run the driver", type=int, metavar="N")
    add("--job-name", "name of the job; else the run's", metavar="NAME")
    for option in ("--partition", "--account", "--qos", "--constraint"):
        add(option, "as for sbatch", metavar="NAME")
    add("--mem", "memory of each node, as 200G; 0 for all", metavar="SIZE")
    add(
        "--cpus-per-task",
        "cores of each task, and its OMP_NUM_THREADS; else the cluster decides, often for one",
        type=int,
        metavar="N",
    )
    add("--exclusive", "share the nodes with nobody", action="store_true")
    add("--sbatch", "any other option: --sbatch=--reservation=mine", "sbatch_options", metavar="OPTION", **many)
    add("--container", "image to train in: a .sif under apptainer, else enroot through pyxis", metavar="IMAGE")
    add("--module", "for `module load`; may be repeated", "modules", metavar="NAME", **many)
    add(
        "--env-setup", "shell before the training, as 'source env.sh'; may be repeated", "setup", metavar="LINE", **many
    )
    parser.add_argument(
        "--python",
        help="interpreter on the nodes; else this one, or `python` after --env-setup, --module and --container",
    )
    add("--tasks", "one for each GPU, or one for each node with torchrun inside", choices=("gpu", "node"))
    add("--warning-seconds", "how long before the time limit SLURM warns the run, at least", type=int, metavar="S")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the script (default RUNS/slurm/NAME/job.sbatch)")
    parser.add_argument("--submit", action="store_true", help="submit it, too")


def run(options: argparse.Namespace) -> int:
    job = slurm_job(options)
    script, config = sbatch_script(job), check_job(job)
    folder = log_folder(config, job.job_name)
    runs = run_names(job, config)
    earlier = read_record(folder)
    record = Record(folder, job.recipe, config.run.folder, runs, is_array(job), earlier.submitted if earlier else ())
    sbatch = slurm_command("sbatch") if options.submit else ""
    if sbatch and earlier:
        refuse_second_job(earlier)
    record.write()  # with its folder: SLURM makes none for logs
    path = options.out or folder / "job.sbatch"
    write_script(path, script)
    if not sbatch:
        print(f"wrote {display_path(path)}; submit it with: sbatch {display_path(path)}")
        return 0
    number = submit(sbatch, path)
    where = "" if record.run_folder == "runs" else f" --runs {record.run_folder}"
    replace(record, submitted=(*record.submitted, number)).write()
    print(
        f"submitted {display_path(path)} as job {number}; how far it is: python -m launch status {folder.name}{where}"
    )
    return 0


def slurm_job(options: argparse.Namespace) -> SlurmJob:
    """The job that was asked for. Without --python it takes this interpreter, if the nodes will have it."""
    typed = {field.name: getattr(options, field.name) for field in fields(SlurmJob)}
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in typed.items() if v is not None
    }
    if not {"python", "setup", "modules", "container"} & values.keys():
        values["python"] = display_path(Path(sys.executable))
    return SlurmJob(**values)


def refuse_second_job(record: Record) -> None:
    """Raises ConfigError while a job of this name waits or runs: two jobs cannot train one run."""
    for job in jobs_of(record):
        if job.alive:
            raise ConfigError(
                f"{job.run} already has job {job.number}, {job.state}: end it with `python -m launch cancel {job.run}`, or give "
                "this one another run.name"
            )


def write_script(path: Path, script: str) -> None:
    """Write it; another script in its place, which may have been edited, is kept under a number."""
    if path.is_file() and path.read_text() != script:
        numbered = (path.with_name(f"{path.name}.{number}") for number in count(1))
        kept = next(earlier for earlier in numbered if not earlier.exists())
        path.rename(kept)
        print(f"the earlier {display_path(path)} is kept as {display_path(kept)}")
    write_file(path, script, "--out")


def submit(sbatch: str, path: Path) -> str:
    """Number of the new job. Raises ConfigError with sbatch's own refusal and what to do about it."""
    result = subprocess.run([sbatch, "--parsable", str(path)], capture_output=True, text=True)
    if result.returncode:
        refusal = result.stderr.strip().replace("sbatch: error: ", "")
        hint = next(hint for word, hint in HINTS.items() if word in refusal.lower())
        raise ConfigError(f"sbatch refused {display_path(path)}: {refusal}\n{hint}")
    return result.stdout.strip().partition(";")[0]
