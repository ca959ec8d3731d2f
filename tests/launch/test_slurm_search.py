"""A search under a real SLURM: two elements of a job array work on one study, and one of them is requeued in mid-trial."""

import json
import sys

import pytest

from tests.conftest import ROOT, metrics, write_recipe
from tests.launch.slurm_cluster import cluster, until

__all__ = ["cluster"]
pytestmark = pytest.mark.slow
pytest.importorskip("optuna")

PYTHON = """\
#!/bin/bash
# The worker is real; what it trains takes no time.
[[ $1 == -m ]] && exec {python} "$@"
exec {python} {stand_in} "$@"
"""


def test_workers_of_a_job_array_share_a_search(cluster, corpus, tmp_path):
    recipe, python = write_recipe(tmp_path, corpus), tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable, stand_in=ROOT / "tests/tasks/stand_in_training.py"))
    python.chmod(0o755)
    options = f"--nodes 1 --gpus-per-node 1 --time 10 --python {python} --env-setup 'export STEP_SECONDS=0.06' --submit"
    words = ["search", recipe, "schedule.steps=90", "validation.every_steps=10", "--space", "optimizer.lr=log:1e-3:1e0"]
    words += ["--trials", "5", "--pruner", "none", "--workers", "2", "--slurm", options]
    submitted = cluster.run(sys.executable, "-m", "tasks", *words)
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.split(" as job ")[1].split(";")[0]
    folder, logs = tmp_path / "runs/tiny-search", tmp_path / "runs/slurm/tiny-search"

    def everything() -> str:
        return "\n".join(f"{path}:\n{path.read_text()}" for path in [*logs.rglob("*.log"), *folder.glob("*.log")])

    def at_step(number: int, step: int) -> bool:
        path = folder / f"trial_{number:04d}/metrics.jsonl"
        return path.exists() and f'"step": {step},' in path.read_text()

    until(lambda: at_step(0, 35) and at_step(1, 10), 100, everything)
    first = 0 if "trial 0" in (logs / f"{job}_0/rank_0.log").read_text() else 1
    assert cluster.run("scontrol", "requeue", f"{job}_{first}").returncode == 0
    for element in (first, 1 - first):
        cluster.wait_for(f"{job}_{element}", "COMPLETED")
    assert (
        f"job {job}_{first} COMPLETED, restarted 1 ×"
        in cluster.launch("status", "tiny-search", "--runs", tmp_path / "runs").stdout
    )

    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 5, everything()
    starts = (folder / "trial_0000.log").read_text().split("starts after step ")[1:]
    assert int(starts[0].split()[0]) == 0 and int(starts[1].split()[0]) >= 30, "continued from its checkpoint"
    assert [record["step"] for record in metrics(folder / "trial_0000")] == list(range(1, 91))
    both = [(logs / f"{job}_{element}/rank_0.log").read_text() for element in (0, 1)]
    assert all("is complete after 90" in log for log in both), "each worker has done its part"
