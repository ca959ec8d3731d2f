"""A training as a SLURM job: the sbatch script that starts it, has it stop in time and lets it continue.

The script and the run agree on exit codes. train.py exits with 0 when the run is complete, with 2 for a mistake that starting
again would repeat, with 75 when a rank, a host or a link did not answer, and after saving with 138 when it was asked to make
room (USR1) or its time is up, with 143 when it was told to end (TERM). The script requeues the job after 138 and 75, and after
143 if SLURM preempts it, but not twice without a new checkpoint. A cancelled job it lets go; a dead node SLURM requeues itself.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from config import ConfigError, RunConfig, derive, load_recipe
from launch.slurm import template
from launch.slurm.sweep import sweep

ELEMENT = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
"""Number of an element of a job array, in shell."""
RANKS = "srun --kill-on-bad-exit=1"


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


def sbatch_script(job: SlurmJob) -> str:
    """The script's text. Raises ConfigError if the recipe, its batch on this many ranks or the time limit cannot work."""
    config = check_job(job)
    parts = [
        _header(job, config),
        _environment(job),
        _places(job, config),
        template.RENDEZVOUS,
        _training(job, config),
        template.ENDING,
    ]
    return "\n".join(parts)


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


def _header(job: SlurmJob, config: RunConfig) -> str:
    name, elements = job.job_name or config.run.name, len(run_names(job, config)) if is_array(job) else 0
    limit = f"%{job.array_limit}" if job.array_limit else ""
    options = {
        "job-name": name,
        "array": f"0-{elements - 1}{limit}" if elements else "",
        "nodes": job.nodes,
        "ntasks-per-node": job.ranks_per_node if job.tasks == "gpu" else 1,
        "gpus-per-node": job.gpus_per_node,
        "cpus-per-task": job.cpus_per_task,
        "mem": job.mem,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "output": log_folder(config, job.job_name) / ("%A_%a.log" if elements else "%j.log"),
        "open-mode": "append",
        "signal": f"B:USR1@{job.warning_seconds}",
    }
    lines = [f"--{option}={shlex.quote(str(value))}" for option, value in options.items() if value]
    lines += ["--requeue", *["--exclusive"] * job.exclusive, *job.sbatch_options]
    title = f"{config.run.name} on {job.nodes} × {job.gpus_per_node} GPUs" if job.gpus_per_node else config.run.name
    return template.HEAD.format(
        title=title, options="\n".join(f"#SBATCH {line}" for line in lines), logs=log_folder(config, job.job_name)
    )


def _environment(job: SlurmJob) -> str:
    lines = [f"module load {' '.join(map(shlex.quote, job.modules))}"] if job.modules else []
    lines += [*job.setup, "export PYTHONUNBUFFERED=1"]
    if job.cpus_per_task:  # since SLURM 22.05 srun does not take it over from sbatch
        lines += ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK"]
    return template.ENVIRONMENT.format(lines="\n".join(lines))


def _places(job: SlurmJob, config: RunConfig) -> str:
    """Names of job, run and log folder, and what each element of an array changes."""
    folder, elements = shlex.quote(str(log_folder(config, job.job_name))), sweep(job.array, config.run.name)
    if job.driver:
        run = shlex.quote(str(Path(config.run.folder) / (job.job_name or config.run.name)))
        return template.PLACES.format(job=ELEMENT, logs=folder, run=run)
    if not elements:
        run = shlex.quote(str(Path(config.run.folder) / config.run.name))
        return template.PLACES.format(job="$SLURM_JOB_ID", logs=folder, run=run)
    cases = "\n".join(f"    {number}) sweep=({shlex.join(e.overrides)}) ;;" for number, e in enumerate(elements))
    place = template.PLACES.format(
        job=ELEMENT,
        logs=folder,
        run=f"{shlex.quote(config.run.folder)}/${{sweep[-1]#run.name=}}",
    )
    return f"case $SLURM_ARRAY_TASK_ID in\n{cases}\nesac\n{place}"


def _training(job: SlurmJob, config: RunConfig) -> str:
    """srun and what it runs, one word group a line; or a driver, which has its own srun."""
    if job.driver:
        python = shlex.quote(job.python)
        words = [
            f"{python} -m {job.driver}",
            f"--launcher {shlex.quote(f'{RANKS} {python}')}",
            '>> "$logs/rank_0.log" 2>&1',
        ]
        return template.TRAINING.format(command=" \\\n    ".join(words), latest='"$run"/*/checkpoints/latest')
    arguments = [shlex.join(("train.py", job.recipe, *job.overrides))]
    arguments += ['"${sweep[@]}"'] * bool(job.array)
    before = after = ""
    if config.run.resume == "fresh":
        before = template.FRESH
        arguments.append('"${resume[@]}"')
    container = _container(job, config)
    words = [f'{RANKS} --open-mode=append --output="$logs/rank_%t.log"']
    if job.tasks == "gpu":
        words += [*container, " ".join([shlex.quote(job.python), *arguments])]
    else:
        before, after = before + template.BEFORE_TORCHRUN, template.AFTER_TORCHRUN
        launcher = template.TORCHRUN.format(python=shlex.quote(job.python), nodes=job.nodes, ranks=job.ranks_per_node)
        words += [*container, launcher, " ".join(arguments)]
    return (
        before + template.TRAINING.format(command=" \\\n    ".join(words), latest='"$run/checkpoints/latest"') + after
    )


def _container(job: SlurmJob, config: RunConfig) -> list[str]:
    """The words that run a command inside the image, with the folders outside of the working one that the run needs."""
    if not job.container:
        return []
    read = [dataset.path for dataset in config.data.datasets]
    for labelled in (config.data.examples, config.data.pairs):
        read += [path for path in (labelled.train, labelled.valid, labelled.tokenizer) if path] if labelled else []
    read += [config.run.start_from] if config.run.start_from else []
    folders = {config.run.folder, *(str(Path(path)) for path in read)}
    mounts = ['"$PWD"', *(shlex.quote(folder) for folder in sorted(folders) if Path(folder).is_absolute())]
    image = shlex.quote(job.container)
    if job.container.endswith(".sif"):
        binds = " ".join(f"--bind {mount}" for mount in mounts)
        return [f'apptainer exec {"--nv " if job.gpus_per_node else ""}{binds} --pwd "$PWD" {image}']
    pairs = ",".join(f"{mount}:{mount}" for mount in mounts)
    return [f'--container-image={image} --container-mounts={pairs} --container-workdir="$PWD"']
