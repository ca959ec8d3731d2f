"""A training as a SLURM job: the sbatch script that starts it, has it stop in time and lets it continue.

The script and the run agree on exit codes. train.py exits with 0 when the run is complete, with 2 for a mistake that starting
again would repeat, with 75 when a rank, a host or a link did not answer, and after saving with 138 when it was asked to make
room (USR1) or its time is up, with 143 when it was told to end (TERM). The script requeues the job after 138 and 75, and after
143 if SLURM preempts it, but not twice without a new checkpoint. A cancelled job it lets go; a dead node SLURM requeues itself.
"""

import shlex
from pathlib import Path

from config import RunConfig
from launch.slurm import template
from launch.slurm.request import SlurmJob, check_job, is_array, log_folder, run_names
from launch.slurm.sweep import sweep

ELEMENT = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
"""Number of an element of a job array, in shell."""
RANKS = "srun --kill-on-bad-exit=1"


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
