"""The sbatch script: what stands in it, that bash reads it, and what is refused before it is written."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from config import ConfigError
from launch.__main__ import main
from launch.slurm.request import SlurmJob, time_seconds
from launch.slurm.script import sbatch_script
from launch.slurm.sweep import sweep
from tests.conftest import ROOT

EXAMPLES = {
    "llama_7b.sbatch": SlurmJob("llama_7b", nodes=8, cpus_per_task=12),
    "lr_sweep.sbatch": SlurmJob(
        "gpt2_124m",
        nodes=1,
        time="8:00:00",
        job_name="lr_sweep",
        array=("optimizer.lr=3e-4,6e-4,1.2e-3",),
        array_limit=2,
    ),
}
"""The files in launch/slurm/. To write them anew: python -m tests.launch.test_slurm_script"""

SWEEP = ("optimizer.lr=1e-3,3e-4", "model.dropout=0,0.1")
VARIANTS = {
    "plain": {},
    "options": {
        "partition": "gpu",
        "account": "a",
        "qos": "q",
        "constraint": "h100|h200",
        "mem": "0",
        "exclusive": True,
    },
    "sweep": {"array": SWEEP, "array_limit": 2},
    "torchrun": {"tasks": "node", "nodes": 2, "array": SWEEP},
    "apptainer": {"container": "images/train 1.sif", "setup": ("source env.sh",), "modules": ("cuda/12.8", "nccl")},
    "pyxis": {"container": "nvcr.io#nvidia/pytorch:25.01-py3", "tasks": "node"},
    "cpu": {"gpus_per_node": 0, "nodes": 2, "overrides": ("run.resume=fresh",)},
    "quoting": {"job_name": "it's", "overrides": ("run.name=it's mine", 'monitor.sample_prompt=$HOME `id` "x"')},
}


def script(recipe: Path, **options) -> str:
    return sbatch_script(SlurmJob(str(recipe), **{"gpus_per_node": 2, **options}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_bash_reads_every_script(recipe, variant):
    text = script(recipe, **VARIANTS[variant])
    result = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert text.index(options[-1]) < text.index("\n\n"), "sbatch reads no option after the first command"


def test_options_of_sbatch(recipe):
    lines = script(recipe, nodes=2, **VARIANTS["options"]).splitlines()
    wanted = [
        "--nodes=2",
        "--ntasks-per-node=2",
        "--gpus-per-node=2",
        "--partition=gpu",
        "--qos=q",
        "--mem=0",
        "--exclusive",
    ]
    wanted += ["--requeue", "--open-mode=append", "--signal=B:USR1@120", "--time=24:00:00", "--constraint='h100|h200'"]
    assert not {f"#SBATCH {option}" for option in wanted} - set(lines)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_is_written(name):
    written = (ROOT / "launch/slurm" / name).read_text()
    assert written == sbatch_script(EXAMPLES[name]), "run python -m tests.launch.test_slurm_script"


def arguments_of_train(text: str, tmp_path: Path, **environ: str) -> list[str]:
    words = arguments_of_srun(text, tmp_path, **environ)
    return words[words.index("train.py") + 1 :]


def arguments_of_srun(text: str, tmp_path: Path, **environ: str) -> list[str]:
    """Run a script with a srun that writes its arguments down."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    calls = tmp_path / "calls"
    calls.unlink(missing_ok=True)
    stubs = {
        "srun": f"printf '%s\\0' \"$@\" '' >> {calls}",
        "scontrol": "echo NodeAddr=10.0.0.7",
        "squeue": "echo NONE",
    }
    for name, body in stubs.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    environ = {"PATH": f"{tools}:/usr/bin:/bin", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n1", **environ}
    result = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return calls.read_text().split("\0")[:-2]


def test_overrides_reach_the_run_as_they_were_typed(recipe, tmp_path):
    found = arguments_of_train(script(recipe, **VARIANTS["quoting"]), tmp_path)
    assert found == [str(recipe), *VARIANTS["quoting"]["overrides"]]


def test_an_element_of_a_sweep_is_a_run_of_its_own(recipe, tmp_path):
    text = script(recipe, array=SWEEP)
    runs = []
    for number in range(4):
        environ = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": str(number)}
        runs.append(arguments_of_train(text, tmp_path, **environ)[1:])
        assert (tmp_path / f"runs/slurm/tiny/70_{number}").is_dir()
    assert runs == [list(element.overrides) for element in sweep(SWEEP, "tiny")]
    assert runs[1] == ["optimizer.lr=1e-3", "model.dropout=0.1", "run.name=tiny-lr_1e-3-dropout_0.1"]
    assert len({run[-1] for run in runs}) == 4


def test_an_earlier_run_is_set_aside_until_the_job_has_a_checkpoint_of_its_own(recipe, tmp_path):
    text = script(recipe, overrides=("run.resume=fresh",))
    latest = tmp_path / "runs/tiny/checkpoints/latest"
    latest.parent.mkdir(parents=True)
    latest.touch()
    os.utime(latest, (1, 1))
    assert arguments_of_train(text, tmp_path)[1:] == ["run.resume=fresh"]
    assert arguments_of_train(text, tmp_path, SLURM_RESTART_COUNT="1")[1:] == ["run.resume=fresh"]
    os.utime(latest)
    assert arguments_of_train(text, tmp_path, SLURM_RESTART_COUNT="2")[1:] == ["run.resume=fresh", "run.resume=auto"]


def test_containers_see_what_the_run_reads_and_writes(recipe, tmp_path, corpus):
    """The recipe's corpus and runs lie outside of the working folder."""
    places = [str(tmp_path), str(corpus), f"{tmp_path}/runs"]
    words = arguments_of_srun(script(recipe, container="a b.sif"), tmp_path)
    assert words[words.index("apptainer") : words.index("--pwd")] == [
        "apptainer", "exec", "--nv", "--bind", places[0], "--bind", places[1], "--bind", places[2]
    ]  # fmt: skip
    assert words[words.index("--pwd") :][:5] == ["--pwd", str(tmp_path), "a b.sif", "python", "train.py"]
    words = arguments_of_srun(script(recipe, container="nvcr.io#nvidia/pytorch:25.01-py3"), tmp_path)
    assert "--container-image=nvcr.io#nvidia/pytorch:25.01-py3" in words and f"--container-workdir={tmp_path}" in words
    assert f"--container-mounts={','.join(f'{place}:{place}' for place in places)}" in words


def test_commas_in_brackets_and_names_that_would_be_the_same():
    axis = "data.datasets=[{path: a, weight: 2}],[{path: b}]"
    assert [e.overrides[0] for e in sweep([axis], "x")] == [
        "data.datasets=[{path: a, weight: 2}]",
        "data.datasets=[{path: b}]",
    ]
    assert [e.run_name for e in sweep(["run.start_from=a/b,a_b"], "x")] == ["x-0", "x-1"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("90:30", 5430), ("24:00:00", 86_400), ("2-12", 216_000), ("1-1:30", 91_800), ("1-0:00:30", 86_430)],
)
def test_time_limits(text, seconds):
    assert time_seconds(text) == seconds


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"time": "24h"}, ["--time 24h", "not a time limit", "24:00:00"]),
        ({"time": "1:2:3:4"}, ["--time 1:2:3:4"]),
        ({"time": "3"}, ["--time 3 is 180 s", "120 s before the end", "--warning-seconds"]),
        ({"nodes": 0}, ["0 nodes"]),
        ({"nodes": 3}, ["global_batch_size 8 is not a multiple", "6 ranks = 12", "(3 nodes × 2 ranks)"]),
        ({"array": ("optimizer.lr=1e-3,fast",)}, ["optimizer.lr=fast", "expected a number"]),
        ({"array": ("batch.micro_batch_size=2,3",)}, ["micro_batch_size 3", "2 ranks = 6"]),
        ({"array": ("optimizer.lr",)}, ["--array optimizer.lr: expected section.key=value,value"]),
        ({"array": ("optimizer.lr=1,1",)}, ["1 stands there twice"]),
        ({"array": ("optimizer.lr=1,2", "optimizer.lr=3")}, ["optimizer.lr twice"]),
        ({"array": ("run.folder=a,b",)}, ["--array run.folder", "leave it out"]),
        ({"array_limit": 2}, ["--array-limit 2 without --array"]),
        ({"cpus_per_task": -2}, ["--cpus-per-task -2", "above zero"]),
        ({"warning_seconds": 0}, ["--warning-seconds 0", "above zero"]),
        ({"job_name": "a/b"}, ["a/b", "without /"]),
        ({"overrides": ("optimizer.lrr=1",)}, ["did you mean lr?"]),
    ],
)
def test_refused(recipe, changes, parts):
    with pytest.raises(ConfigError) as caught:
        script(recipe, **changes)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_the_command_writes_a_script_and_keeps_an_edited_one(recipe, tmp_path, capsys):
    command = ["slurm", str(recipe), "--gpus-per-node", "2", "--out", str(tmp_path / "a.sbatch"), "optimizer.lr=3e-3"]
    assert main(command) == 0
    assert f"sbatch {tmp_path}/a.sbatch" in capsys.readouterr().out
    text = (tmp_path / "a.sbatch").read_text()
    assert text == script(recipe, overrides=("optimizer.lr=3e-3",), python=text.split(" train.py ")[0].split()[-1])
    (tmp_path / "a.sbatch").write_text("edited")
    for learning_rate in ("4e-3", "5e-3"):
        assert main([*command, f"optimizer.lr={learning_rate}"]) == 0 and "kept as" in capsys.readouterr().out
    assert (tmp_path / "a.sbatch.1").read_text() == "edited"
    assert (tmp_path / "a.sbatch.2").read_text().replace("4e-3", "5e-3") == (tmp_path / "a.sbatch").read_text()


@pytest.mark.parametrize("place", ["--out={}", "run.folder={}/runs"])
def test_a_place_that_cannot_be_written_is_named(recipe, tmp_path, capsys, place):
    (tmp_path / "taken").write_text("")
    where = "taken/new/a.sbatch" if "out" in place else "taken"
    assert main(["slurm", str(recipe), "--gpus-per-node", "2", place.format(tmp_path / where)]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/taken/" in said and f"cannot be written: Not a directory; give another {place[:5]}" in said


def test_without_slurm_there_is_one_message(recipe, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["slurm", str(recipe), "--gpus-per-node", "2", "--submit"]) == 2
    assert "sbatch was not found: SLURM's commands are not" in capsys.readouterr().err
    assert main(["status"]) == 2 and "scontrol was not found" in capsys.readouterr().err


def test_a_driver_starts_its_own_trainings(recipe):
    job = SlurmJob(
        str(recipe), nodes=2, gpus_per_node=2, driver="tasks search tiny.yaml", workers=3, job_name="tiny-search"
    )
    script = sbatch_script(job)
    assert "#SBATCH --array=0-2\n" in script and "#SBATCH --ntasks-per-node=2\n" in script
    assert "python -m tasks search tiny.yaml \\\n    --launcher 'srun --kill-on-bad-exit=1 python' \\\n" in script
    assert 'newest() { cat "$run"/*/checkpoints/latest' in script
    with pytest.raises(ConfigError, match="leave --array, --container and --tasks node out"):
        sbatch_script(replace(job, tasks="node"))
    with pytest.raises(ConfigError, match="--workers 3: so many elements run a --driver"):
        sbatch_script(replace(job, driver=""))


if __name__ == "__main__":
    for name, job in EXAMPLES.items():
        (ROOT / "launch/slurm" / name).write_text(sbatch_script(job))
