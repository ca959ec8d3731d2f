"""What a SLURM job is asked for, and whether it can work."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import ConfigError, RunConfig, derive, load_recipe
from launch.slurm.sweep import sweep


@dataclass(frozen=True)
class SlurmJob:
    """What sbatch is asked for, and what runs on it. Empty text and 0 leave a choice to the cluster."""

    recipe: str
    """Name or path, as for train.py."""
    overrides: tuple[str, ...] = ()
    """`section.key=value` each."""
    nodes: int = 1
    gpus_per_node: int = 8
    """0: no GPUs; each node trains as one rank on its CPU."""
    time: str = "24:00:00"
    """Time limit as sbatch takes it, `days-hours:minutes:seconds` or a part of it."""
    job_name: str = ""
    """Default: the run's name."""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    mem: str = ""
    """Memory of a node, as `200G`; `0` is all of it."""
    cpus_per_task: int = 0
    exclusive: bool = False
    sbatch_options: tuple[str, ...] = ()
    """Further ones, as `--reservation=mine`."""
    array: tuple[str, ...] = ()
    """Axes of a sweep, `optimizer.lr=1e-3,3e-4` each; see launch/slurm/sweep.py."""
    array_limit: int = 0
    """Runs of a sweep that train at the same time."""
    driver: str = ""
    """In place of one training, a module with its arguments, as `tasks search …`: it runs on the first node of each element,
    starts trainings by what stands behind its --launcher, and exits as they do."""
    workers: int = 1
    """Elements of the job array that run the driver."""
    container: str = ""
    """Image to train in: a .sif file under apptainer, any other under enroot through pyxis."""
    modules: tuple[str, ...] = ()
    """Names for `module load`."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the training, as `source env.sh`."""
    python: str = "python"
    """The interpreter on the nodes, or in the container."""
    tasks: Literal["gpu", "node"] = "gpu"
    """One task for each GPU, or one for each node, with torchrun inside."""
    warning_seconds: int = 120
    """How long before the time limit SLURM sends USR1, at the latest. The run also watches the time itself."""

    @property
    def ranks_per_node(self) -> int:
        return max(self.gpus_per_node, 1)


def check_job(job: SlurmJob) -> RunConfig:
    """The recipe with its overrides. Raises ConfigError for a job that cannot work."""
    if job.nodes < 1 or job.gpus_per_node < 0:
        raise ConfigError(
            f"{job.nodes} nodes with {job.gpus_per_node} GPUs: a job has at least 1 node and 0 GPUs on it"
        )
    if job.driver and (job.array or job.container or job.tasks == "node"):
        raise ConfigError("--driver starts trainings by srun itself: leave --array, --container and --tasks node out")
    if job.workers < 1 or (job.workers > 1 and not job.driver):
        raise ConfigError(f"--workers {job.workers}: so many elements run a --driver, of which there is at least 1")
    if job.array_limit and not is_array(job):
        raise ConfigError(f"--array-limit {job.array_limit} without --array: there is one run; leave it out")
    if min(job.array_limit, job.cpus_per_task, job.warning_seconds - 1) < 0:
        raise ConfigError(
            f"--array-limit {job.array_limit} --cpus-per-task {job.cpus_per_task} --warning-seconds {job.warning_seconds}: "
            "give numbers above zero"
        )
    needed = 2 * job.warning_seconds  # SLURM may send the signal up to a minute early
    if time_seconds(job.time) < needed:
        raise ConfigError(
            f"--time {job.time} is {time_seconds(job.time):,} s, but SLURM asks the run to save {job.warning_seconds} s "
            f"before the end: give it at least {needed} s, or a shorter --warning-seconds"
        )
    config = load_recipe(job.recipe, job.overrides)
    name = job.job_name or config.run.name
    if "/" in name:
        raise ConfigError(f"{name}: the name of a job is that of its folder, so write it without / (--job-name NAME)")
    for element in sweep(job.array, config.run.name):
        _check_batch(job, load_recipe(job.recipe, (*job.overrides, *element.overrides)))
    _check_batch(job, config)
    return config


def run_names(job: SlurmJob, config: RunConfig) -> tuple[str, ...]:
    """Of the elements of the job array, or of the job's only run."""
    name = job.job_name or config.run.name
    if job.driver:
        return tuple(f"{name}-{number}" for number in range(job.workers))
    return tuple(element.run_name for element in sweep(job.array, config.run.name)) or (config.run.name,)


def is_array(job: SlurmJob) -> bool:
    return bool(job.array or job.driver)


def time_seconds(text: str) -> int:
    """Seconds of a SLURM time limit: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ConfigError(
            f"--time {text}: not a time limit; write hours:minutes:seconds as 24:00:00, days-hours as 2-12, or minutes as 90"
        )
    days, first, second, third = match.groups()
    a, b, c = int(first), int(second or 0), int(third or 0)
    if days is not None:
        return ((int(days) * 24 + a) * 60 + b) * 60 + c
    return (a * 60 + b) * 60 + c if third else a * 60 + b


def log_folder(config: RunConfig, job_name: str = "") -> Path:
    """Where scripts and logs of a job lie: beside the runs, because `run.resume=fresh` sets a run's own folder aside."""
    return Path(config.run.folder) / "slurm" / (job_name or config.run.name)


def _check_batch(job: SlurmJob, config: RunConfig) -> None:
    try:
        derive(config, job.nodes * job.ranks_per_node)
    except ConfigError as error:
        raise ConfigError(f"{error} ({job.nodes} nodes × {job.ranks_per_node} ranks)") from None
