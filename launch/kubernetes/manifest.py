"""write a Kubernetes manifest: a PyTorchJob of the training operator, or a JobSet"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import yaml

from config.load import display_path
from launch.files import write_file
from launch.kubernetes.job import SAVED_BEFORE_SECONDS, Kind, KubernetesJob, check_job, pairs, valid_name

JOBSET_PORT = 29500
NODES = "nodes"


SHIPPED: dict[str, KubernetesJob] = {
    kind: KubernetesJob(
        "llama_7b",
        image="registry.example.com/groundwork:latest",
        claim="groundwork",
        kind=kind,
        nodes=2,
        cpu="96",
        memory="800Gi",
        rdma="rdma/ib",
    )
    for kind in get_args(Kind)
}
"""The files in launch/kubernetes/, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(option: str, about: str, metavar: str | None = None, **settings: Any) -> None:
        """An option for a field of KubernetesJob, with its default."""
        default = getattr(KubernetesJob, option.strip("-").replace("-", "_"), "")
        shown = f"{about} (default {default})" if default else about
        parser.add_argument(option, default=default, type=type(default), metavar=metavar, help=shown, **settings)

    parser.add_argument("recipe", help="name, or path in the checkout on the claim")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings, as for train.py")
    add("--kind", "for Kubeflow's training operator, or for JobSet", choices=get_args(Kind))
    add("--nodes", "pods, each one node", "N")
    add("--gpus-per-node", "ranks of each pod", "N")
    add("--image", "container image with what `pip install -e .` installs")
    add("--claim", "PersistentVolumeClaim (ReadWriteMany) that holds a checkout, its corpora and runs", "NAME")
    add("--workdir", "where the claim is mounted and the training starts", "PATH")
    add("--name", "name of the job; else the run's")
    add("--namespace", "else the one that kubectl is set to", "NAME")
    add("--shm-size", "of /dev/shm", "SIZE")
    add("--cpu", "cores of each pod", "N")
    add("--memory", "memory of each pod, as 800Gi", "SIZE")
    add("--rdma", "the cluster's resource for InfiniBand or RoCE, as rdma/ib", "RESOURCE")
    for option, metavar in (("--env", "NAME=VALUE"), ("--node-selector", "LABEL=VALUE")):
        parser.add_argument(option, action="append", default=[], metavar=metavar, help="may be repeated")
    add("--grace-seconds", "from the signal to end to the kill", "S")
    add("--restarts", "how often the job starts again after a preemption or a failure", "N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the manifest (default: printed)")


def run(options: argparse.Namespace) -> int:
    values = ((field.name, getattr(options, field.name)) for field in fields(KubernetesJob))
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values}
    text = manifest_text(KubernetesJob(**given))
    if not options.out:
        print(text, end="")
        return 0
    write_file(options.out, text, "--out")
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
    config = check_job(job)
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
    variables = {**(rendezvous or {}), **shutdown, **pairs("--env", job.env)}
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
    selector = pairs("--node-selector", job.node_selector)
    return {
        "terminationGracePeriodSeconds": job.grace_seconds,
        **({"nodeSelector": selector} if selector else {}),
        "containers": [container],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm_size}},
        ],
    }
