"""What a cluster is asked for in a Kubernetes manifest, and whether it can work."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from config import ConfigError, RunConfig, load_recipe
from config.derive import derive

Kind = Literal["pytorchjob", "jobset"]

LONGEST_NAME = 40
"""Of the 63 characters of a host name; the rest is what the operators add."""
SAVED_BEFORE_SECONDS = 30
"""How long before Kubernetes kills a pod torchrun kills what still runs."""
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


@dataclass(frozen=True)
class KubernetesJob:
    """What the cluster is asked for, and what runs on it."""

    recipe: str
    """Name, or path in the checkout on the claim; it is read here too, to be checked."""
    image: str
    """Container image with what `pip install -e .` installs."""
    claim: str
    """PersistentVolumeClaim, ReadWriteMany, that holds a checkout of the project with its corpora and runs."""
    overrides: tuple[str, ...] = ()
    kind: Kind = "pytorchjob"
    nodes: int = 1
    gpus_per_node: int = 8
    name: str = ""
    """Default: the run's name, made a valid one."""
    namespace: str = ""
    workdir: str = "/workspace"
    """Where the claim is mounted and the training starts."""
    shm_size: str = "16Gi"
    """Size of /dev/shm, which NCCL exchanges through inside a node; Kubernetes' own 64 MiB are too few."""
    cpu: str = ""
    memory: str = ""
    rdma: str = ""
    """Name of the device plug-in's resource for InfiniBand or RoCE, as rdma/ib."""
    env: tuple[str, ...] = ()
    """NAME=VALUE each."""
    node_selector: tuple[str, ...] = ()
    """LABEL=VALUE each."""
    grace_seconds: int = 600
    """Between the signal to end and the kill: one step and one checkpoint have to fit."""
    restarts: int = 100
    """How often a preempted or failed job starts again, each time from its newest checkpoint."""


def check_job(job: KubernetesJob) -> RunConfig:
    """The recipe with its overrides. Raises ConfigError if it, its batch on this many ranks, or an option cannot work."""
    config = load_recipe(job.recipe, job.overrides)
    if not job.image:
        raise ConfigError("--image is missing: give the container image with what `pip install -e .` installs")
    if not job.claim:
        raise ConfigError(
            "--claim is missing: give the PersistentVolumeClaim (ReadWriteMany) that holds the checkout, its corpora and "
            "runs: all pods read and write there"
        )
    if job.nodes < 1 or job.gpus_per_node < 1:
        raise ConfigError(
            f"--nodes {job.nodes} --gpus-per-node {job.gpus_per_node}: a pod trains on its GPUs, so give at least 1 of each"
        )
    if config.run.resume == "fresh":
        raise ConfigError(
            "run.resume fresh would start over whenever a pod starts again: leave it out, and give another run.name to "
            "train anew"
        )
    _check_names(job)
    _check_amounts(job)
    pairs("--env", job.env)
    pairs("--node-selector", job.node_selector)
    derive(config, job.nodes * job.gpus_per_node)
    return config


def _check_names(job: KubernetesJob) -> None:
    if job.name and job.name != valid_name(job.name):
        raise ConfigError(
            f"--name {job.name}: Kubernetes takes small letters, digits and hyphens, a letter first, here not more than "
            f"{LONGEST_NAME} of them: {valid_name(job.name)}"
        )
    for option, name in (("--namespace", job.namespace), ("--claim", job.claim)):
        if name and not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", name):
            raise ConfigError(
                f"{option} {name}: Kubernetes' names are small letters, digits and hyphens, as {valid_name(name)}"
            )


def _check_amounts(job: KubernetesJob) -> None:
    for option, amount in (("--cpu", job.cpu), ("--memory", job.memory), ("--shm-size", job.shm_size)):
        if amount and not QUANTITY.fullmatch(amount):
            raise ConfigError(f"{option} {amount}: give a number with a unit of Kubernetes, as 96, 500m, 800Gi or 2T")
    if job.restarts < 0:
        raise ConfigError(f"--restarts {job.restarts}: give 0 or more")
    if job.grace_seconds <= SAVED_BEFORE_SECONDS:
        raise ConfigError(
            f"--grace-seconds {job.grace_seconds}: {SAVED_BEFORE_SECONDS} of them are for ending, so give more than that: as "
            "long as a step and a checkpoint take"
        )


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts as a dictionary."""
    for text in texts:
        if not re.fullmatch(r"[^=\s]+=.*", text):
            raise ConfigError(f"{option} {text}: expected NAME=VALUE")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def valid_name(text: str) -> str:
    """A DNS-1123 label near to a text: small letters, digits and hyphens, a letter first."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    label = label if label[:1].isalpha() else f"run-{label}"
    return label[:LONGEST_NAME].rstrip("-")
