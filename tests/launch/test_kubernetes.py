"""Manifests fit the published models, and what a pod runs trains, saves when it is told to end, and goes on."""

import copy
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml

from config import ConfigError
from launch.__main__ import main
from launch.kubernetes.job import KubernetesJob, valid_name
from launch.kubernetes.manifest import SHIPPED, manifest, manifest_text
from tests.conftest import ROOT, environment, losses
from tests.ranks import free_port

models = pytest.importorskip(
    "tests.launch.kubernetes_models", reason="needs kubeflow-training and kubeflow-trainer-api"
)
KINDS = ("pytorchjob", "jobset")
TINY = KubernetesJob("gpt_debug", "image:1", "disk", nodes=2, gpus_per_node=1)


def containers(content):
    """Of all pods."""
    found = [content] if "command" in content else []
    return found + [c for value in content.values() for v in (value if isinstance(value, list) else [value])
                    if isinstance(v, dict) for c in containers(v)]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_are_what_the_command_writes_and_fit_the_models(kind, tmp_path, capsys):
    shipped = ROOT / f"launch/kubernetes/{kind}.yaml"
    assert shipped.read_text() == manifest_text(SHIPPED[kind]), f"python -m launch kubernetes … --out {shipped}"
    assert models.problems(yaml.safe_load(shipped.read_text())) == []
    every_option = (
        "--kind KIND --nodes 3 --gpus-per-node 1 --image a/b:1 --claim disk --workdir /w --name my-run --namespace team"
    )
    every_option += (
        " --shm-size 2Gi --cpu 500m --memory 2T --rdma rdma/ib --env A=b=c --env B= --node-selector gpu=h100"
    )
    every_option += " --grace-seconds 90 --restarts 3 batch.global_batch_size=12"
    out = tmp_path / "new/job.yaml"
    arguments = ["kubernetes", "gpt_debug", *every_option.replace("KIND", kind).split(), "--out", str(out)]
    assert main(arguments) == 0 and f"kubectl apply -f {out}" in capsys.readouterr().out
    content = yaml.safe_load(out.read_text())
    assert models.problems(content) == []
    assert content["metadata"] == {"name": "my-run", "namespace": "team"}
    for container in containers(content):
        assert {"name": "A", "value": "b=c"} in container["env"] and {"name": "B", "value": ""} in container["env"]
        assert container["resources"]["limits"] == {
            "nvidia.com/gpu": "1",
            "cpu": "500m",
            "memory": "2T",
            "rdma/ib": "1",
        }


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_find_a_misspelt_field_and_a_wrong_type_everywhere(kind):
    """In every section of the manifest."""
    good = manifest(replace(SHIPPED[kind], node_selector=("gpu=h100",)))
    assert models.problems(good) == []
    free = {"limits", "nodeSelector", "metadata"}  # their keys are names

    def sections(value, path=()):
        if isinstance(value, dict):
            if not free & set(path) and path and path[-1] != "pytorchReplicaSpecs":
                yield path
            value = value.items()
        for key, item in value if not isinstance(value, list) else enumerate(value):
            if isinstance(item, dict | list):
                yield from sections(item, (*path, key))

    places = list(sections(good))
    assert len(places) > 10
    for path in [(), *places]:
        bad = copy.deepcopy(good)
        section = bad
        for key in path:
            section = section[key]
        section["misspelt"] = 1
        assert any("misspelt" in problem for problem in models.problems(bad)), path
    for container_change in (
        {"image": 5},
        {"command": "torchrun"},
        {"env": [{"name": "A", "value": 1}]},
        {"workingDir": []},
    ):
        bad = copy.deepcopy(good)
        containers(bad)[0].update(container_change)
        assert models.problems(bad), container_change


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_has_time_to_save_and_hears_the_signal(kind):
    job = replace(TINY, kind=kind, grace_seconds=300)
    text = str(manifest(job))
    assert "'terminationGracePeriodSeconds': 300" in text and "'medium': 'Memory', 'sizeLimit': '16Gi'" in text
    for container in containers(manifest(job)):
        assert container["command"][0] == "torchrun", "a shell in between would keep the signal to itself"
        assert {"name": "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "value": "270"} in container["env"]


def test_pods_find_each_other():
    pytorchjob, jobset = (
        manifest(replace(TINY, kind=k, nodes=4, overrides=("batch.global_batch_size=16",))) for k in KINDS
    )
    replicas = pytorchjob["spec"]["pytorchReplicaSpecs"]
    assert {kind: spec["replicas"] for kind, spec in replicas.items()} == {"Master": 1, "Worker": 3}
    assert "Worker" not in manifest(replace(TINY, nodes=1))["spec"]["pytorchReplicaSpecs"]
    (group,) = jobset["spec"]["replicatedJobs"]
    job, name = group["template"]["spec"], jobset["metadata"]["name"]
    assert (job["parallelism"], job["completions"], job["completionMode"], job["backoffLimit"]) == (4, 4, "Indexed", 0)
    env = {entry["name"]: entry["value"] for entry in containers(jobset)[0]["env"]}
    assert env["MASTER_ADDR"] == f"{name}-{group['name']}-0-0.{name}", "the host name that JobSet gives the first pod"
    commands = [pod_command(container, {"RANK": "3", "JOB_COMPLETION_INDEX": "3", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
                for content in (pytorchjob, jobset) for container in containers(content)[-1:]]  # fmt: skip
    assert commands[0] == commands[1] and "--node-rank=3" in commands[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--claim disk", "--image is missing: give the container image with what"),
        ("--image a", r"--claim is missing: give the PersistentVolumeClaim \(ReadWriteMany\)"),
        ("--gpus-per-node 0", "--nodes 1 --gpus-per-node 0: .* at least 1 of each"),
        ("--nodes 0", "--nodes 0 --gpus-per-node 8: "),
        ("--name My_Run.1", "--name My_Run.1: Kubernetes takes small letters, .*: my-run-1$"),
        ("--name 7b", "--name 7b: .*: run-7b$"),
        ("--namespace A", "--namespace A: .*, as a$"),
        ("--claim My_Disk", "--claim My_Disk: .*, as my-disk$"),
        ("run.resume=fresh", "run.resume fresh would start over whenever a pod starts again"),
        ("--nodes 3", "batch.global_batch_size 8 is not a multiple of batch.micro_batch_size 4 × 24 ranks = 96"),
        ("--memory 800GB", "--memory 800GB: give a number with a unit of Kubernetes, as 96, 500m, 800Gi"),
        ("--shm-size much", "--shm-size much: give a number"),
        ("--grace-seconds 30", "--grace-seconds 30: 30 of them are for ending"),
        ("--restarts -1", "--restarts -1: give 0 or more"),
        ("--env NOTHING", "--env NOTHING: expected NAME=VALUE"),
        ("model.layers=3", "did you mean num_layers"),
    ],
)
def test_wrong_inputs(arguments, message, capsys):
    given = [] if "missing" in message else ["--image", "a", "--claim", "disk"]
    assert main(["kubernetes", "gpt_debug", *given, *arguments.split()]) == 2
    assert re.search(message, capsys.readouterr().err.strip(), re.MULTILINE), message


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Llama_7B.v2", "llama-7b-v2"),
        ("7b", "run-7b"),
        ("--", "run"),
        ("a" * 60, "a" * 40),
        ("x" * 39 + "-y", "x" * 39),
    ],
)
def test_a_name_is_made_valid(text, name):
    assert valid_name(text) == name and valid_name(name) == name
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)


def pod_command(container: dict, variables: dict[str, str]) -> list[str]:
    """As Kubernetes starts the container: $(NAME) replaced by the variable."""
    return [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in container["command"]]


def start_pods(content: dict) -> list[subprocess.Popen]:
    """Both nodes of a PyTorchJob as processes, with what the operator sets."""
    port, pods = str(free_port()), []
    for rank, container in enumerate(containers(content)):
        operator = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = operator | {entry["name"]: entry["value"] for entry in container["env"]}
        torchrun, *arguments = pod_command(container, variables)
        assert torchrun == "torchrun"
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]
        pods.append(subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True))  # fmt: skip
    return pods


@pytest.mark.slow
def test_two_pods_train_save_when_one_is_preempted_and_go_on(recipe, tmp_path):
    run, long = tmp_path / "runs/tiny", ("schedule.steps=60", "checkpoint.every_steps=1000", "validation.every_steps=0")
    content = manifest(replace(TINY, recipe=str(recipe), overrides=long))
    pods = start_pods(content)
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < 10:
        assert time.monotonic() < deadline and all(pod.poll() is None for pod in pods), "did not train"
        time.sleep(0.01)
    pods[1].send_signal(signal.SIGTERM)
    outputs = [pod.communicate(timeout=60)[0] for pod in pods]
    assert all(pod.returncode for pod in pods), "Kubernetes starts only failed containers again"
    stopped = max(losses(run))
    assert 10 <= stopped < 60 and f"stopped after step {stopped:,} and saved" in outputs[0], outputs[0][-2000:]
    pods = start_pods(content)
    outputs = [pod.communicate(timeout=120)[0] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0], outputs[0][-2000:]
    assert sorted(losses(run)) == list(range(1, 61))


def test_errors_are_those_of_the_recipe():
    with pytest.raises(ConfigError, match="no such recipe"):
        manifest(replace(TINY, recipe="gpt_debg"))
