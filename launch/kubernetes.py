"""write a Kubernetes manifest: a PyTorchJob of the training operator, or a JobSet"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from config import ConfigError, RunConfig, load_recipe
from config.derive import derive
from config.load import display_path

Kind = Literal["pytorchjob", "jobset"]

LONGEST_NAME = 40
"""Of the 63 characters of a host name; the rest is what the operators add."""
SAVED_BEFORE_SECONDS = 30
"""How long before Kubernetes kills a pod torchrun kills what still runs."""
JOBSET_PORT = 29500
NODES = "nodes"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


@dataclass(frozen=True)
class KubernetesJob:
    """What the cluster is asked for, and what runs on it."""

    recipe: str
    """Name or path, as for train.py."""
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


SHIPPED: dict[str, KubernetesJob] = {
    kind: KubernetesJob("llama_7b", "registry.example.com/groundwork:latest", "groundwork", kind=kind, nodes=2,
                        cpu="96", memory="800Gi", rdma="rdma/ib", name="llama-7b",
                        overrides=("batch.global_batch_size=1024", "batch.micro_batch_size=4"))
    for kind in get_args(Kind)
}  # fmt: skip
"""The files in launch/kubernetes/, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = KubernetesJob
    add = parser.add_argument
    add("recipe", help="name or path, as for train.py")
    add("overrides", nargs="*", metavar="section.key=value", help="settings, as for train.py")
    add("--kind", choices=get_args(Kind), default=default.kind, help="default pytorchjob, for Kubeflow's operator")
    add("--nodes", type=int, default=default.nodes, help="pods, each one node (default 1)")
    add("--gpus-per-node", type=int, default=default.gpus_per_node, help="ranks of each pod (default 8)")
    add("--image", default="", help="container image with what `pip install -e .` installs")
    add("--claim", default="", metavar="NAME", help="PersistentVolumeClaim (ReadWriteMany) with a checkout, its corpora and runs")  # fmt: skip
    add("--workdir", default=default.workdir, metavar="PATH", help="where the claim is mounted and the training starts (default /workspace)")  # fmt: skip
    add("--name", default="", help="name of the job; else the run's")
    add("--namespace", default="", help="else the one that kubectl is set to")
    add("--shm-size", default=default.shm_size, metavar="SIZE", help="of /dev/shm (default 16Gi)")
    add("--cpu", default="", metavar="N", help="cores of each pod")
    add("--memory", default="", metavar="SIZE", help="memory of each pod, as 800Gi")
    add("--rdma", default="", metavar="RESOURCE", help="the cluster's resource for InfiniBand or RoCE, as rdma/ib")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    add("--node-selector", action="append", default=[], metavar="LABEL=VALUE", help="may be repeated")
    add("--grace-seconds", type=int, default=default.grace_seconds, metavar="S", help="from the signal to end to the kill (default 600)")  # fmt: skip
    add("--restarts", type=int, default=default.restarts, metavar="N", help="after preemptions and failures (default 100)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="the manifest (default: printed)")


def run(options: argparse.Namespace) -> int:
    values = ((field.name, getattr(options, field.name)) for field in fields(KubernetesJob))
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values}
    text = manifest_text(KubernetesJob(**given))
    if not options.out:
        print(text, end="")
        return 0
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    except OSError as error:
        raise ConfigError(f"--out {options.out}: {error.strerror}; give a file that you can write") from None
    print(f"wrote {display_path(options.out)}; start it with: kubectl apply -f {display_path(options.out)}")
    return 0


def manifest_text(job: KubernetesJob) -> str:
    """The manifest as YAML. Raises ConfigError if the recipe, its batch on this many ranks, or an option cannot work."""
    content = manifest(job)
    first = "master-0" if job.kind == "pytorchjob" else f"{NODES}-0-0-…"
    name = content["metadata"]["name"]
    comment = (
        f"# {job.nodes} × {job.gpus_per_node} GPUs train {job.recipe}. Start: kubectl apply -f THIS\n"
        f"# See: kubectl get {job.kind} {name}; kubectl logs -f {name}-{first}   Stop: kubectl delete {job.kind} {name}\n"
        "# A pod that is told to end saves first; whatever ends, the job starts again from the newest checkpoint.\n"
    )
    return comment + yaml.safe_dump(content, sort_keys=False, width=120)


def manifest(job: KubernetesJob) -> dict[str, Any]:
    """The manifest as a dictionary. Raises as `manifest_text`."""
    config = load_recipe(job.recipe, job.overrides)
    _check(job, config)
    name = job.name or valid_name(config.run.name)
    metadata = {"name": name, **({"namespace": job.namespace} if job.namespace else {})}
    if job.kind == "jobset":
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": _jobset(job, name),
        }
    return {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": metadata, "spec": _pytorchjob(job)}


def valid_name(text: str) -> str:
    """A DNS-1123 label near to a text: small letters, digits and hyphens, a letter first."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    label = label if label[:1].isalpha() else f"run-{label}"
    return label[:LONGEST_NAME].rstrip("-")


def _pytorchjob(job: KubernetesJob) -> dict[str, Any]:
    """The operator sets RANK to the number of the pod, and MASTER_ADDR and MASTER_PORT to the master's service. A container
    that failed starts again in its pod; a pod that was deleted is made again."""

    def replicas(count: int) -> dict[str, Any]:
        return {"replicas": count, "restartPolicy": "OnFailure", "template": {"spec": _pod(job, "RANK")}}

    workers = {"Worker": replicas(job.nodes - 1)} if job.nodes > 1 else {}
    return {
        "nprocPerNode": str(job.gpus_per_node),
        "runPolicy": {"backoffLimit": job.restarts},
        "pytorchReplicaSpecs": {"Master": replicas(1), **workers},
    }


def _jobset(job: KubernetesJob, name: str) -> dict[str, Any]:
    """One indexed Job whose pods are the nodes; pod i has the host name NAME-nodes-0-i in the service NAME. When a pod
    fails, all are made again."""
    pod = _pod(
        job, "JOB_COMPLETION_INDEX", {"MASTER_ADDR": f"{name}-{NODES}-0-0.{name}", "MASTER_PORT": str(JOBSET_PORT)}
    )
    pods = {"parallelism": job.nodes, "completions": job.nodes, "completionMode": "Indexed", "backoffLimit": 0}
    spec = {**pods, "template": {"spec": {"restartPolicy": "Never", **pod}}}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": job.restarts},
        "replicatedJobs": [{"name": NODES, "replicas": 1, "template": {"spec": spec}}],
    }


def _pod(job: KubernetesJob, node_rank: str, rendezvous: dict[str, str] | None = None) -> dict[str, Any]:
    """One node. No shell lies between Kubernetes and torchrun, so that the signal to end reaches it and through it all ranks,
    which save; Kubernetes replaces $(NAME) by the variable."""
    # torchrun would kill its ranks 30 s after the signal; the ranks may take the pod's grace period.
    shutdown = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.grace_seconds - SAVED_BEFORE_SECONDS)}
    variables = {**(rendezvous or {}), **shutdown, **_pairs("--env", job.env)}
    amounts = {"nvidia.com/gpu": str(job.gpus_per_node), "cpu": job.cpu, "memory": job.memory}
    if job.rdma:
        amounts[job.rdma] = "1"
    container = {
        "name": "pytorch",  # the operator looks for this one
        "image": job.image,
        "workingDir": job.workdir,
        "command": [
            "torchrun",
            f"--nnodes={job.nodes}",
            f"--nproc-per-node={job.gpus_per_node}",
            f"--node-rank=$({node_rank})",
            "--master-addr=$(MASTER_ADDR)",
            "--master-port=$(MASTER_PORT)",
            "train.py",
            job.recipe,
            *job.overrides,
        ],
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"limits": {name: amount for name, amount in amounts.items() if amount}},
        **({"securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}} if job.rdma else {}),  # to pin memory
        "volumeMounts": [{"name": "shared", "mountPath": job.workdir}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    selector = _pairs("--node-selector", job.node_selector)
    return {
        "terminationGracePeriodSeconds": job.grace_seconds,
        **({"nodeSelector": selector} if selector else {}),
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm_size}},
        ],
    }


def _check(job: KubernetesJob, config: RunConfig) -> None:
    needed = {"--image": job.image, "--claim": job.claim}
    about = {
        "--image": "the container image with what `pip install -e .` installs",
        "--claim": "the PersistentVolumeClaim (ReadWriteMany) that holds the checkout, its corpora and runs: all pods read "
        "and write there",
    }
    for option, value in needed.items():
        if not value:
            raise ConfigError(f"{option} is missing: give {about[option]}")
    if job.nodes < 1 or job.gpus_per_node < 1:
        raise ConfigError(
            f"--nodes {job.nodes} --gpus-per-node {job.gpus_per_node}: a pod trains on its GPUs, so give at least 1 of each"
        )
    for option, name in (("--name", job.name), ("--namespace", job.namespace), ("--claim", job.claim)):
        if name and name != valid_name(name):
            raise ConfigError(
                f"{option} {name}: Kubernetes takes small letters, digits and hyphens, a letter first, here not more than "
                f"{LONGEST_NAME} of them: {valid_name(name)}"
            )
    for option, amount in (("--cpu", job.cpu), ("--memory", job.memory), ("--shm-size", job.shm_size)):
        if amount and not QUANTITY.fullmatch(amount):
            raise ConfigError(f"{option} {amount}: give a number with a unit of Kubernetes, as 96, 500m, 800Gi or 2T")
    if job.grace_seconds <= SAVED_BEFORE_SECONDS:
        raise ConfigError(
            f"--grace-seconds {job.grace_seconds}: {SAVED_BEFORE_SECONDS} of them are for ending, so give more than that: as "
            "long as a step and a checkpoint take"
        )
    _pairs("--env", job.env)
    _pairs("--node-selector", job.node_selector)
    derive(config, job.nodes * job.gpus_per_node)


def _pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    for text in texts:
        if not re.fullmatch(r"[^=\s]+=.*", text):
            raise ConfigError(f"{option} {text}: expected NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)  # type: ignore[misc]
