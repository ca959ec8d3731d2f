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
    options = f"--nodes 1 --gpus-per-node 1 --time 10 --python {python} --env-setup 'export STEP_SECONDS=0.1' --submit"
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

    def trained_by(element: int) -> int:
        """Number of the trial that a worker trains, -1 if none."""
        log = logs / f"{job}_{element}/rank_0.log"
        last = log.read_text().splitlines()[-1:] if log.exists() else []
        return int(last[0].split()[1].rstrip(":")) if last and "optimizer.lr=" in last[0] else -1

    until(lambda: trained_by(1) >= 0 and at_step(trained_by(0), 35), 150, everything)
    number = trained_by(0)
    assert cluster.run("scontrol", "requeue", f"{job}_0").returncode == 0
    for element in (0, 1):
        cluster.wait_for(f"{job}_{element}", "COMPLETED", seconds=150)
    assert (
        f"job {job}_0 COMPLETED, restarted 1 ×"
        in cluster.launch("status", "tiny-search", "--runs", tmp_path / "runs").stdout
    )

    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 5, everything()
    starts = (folder / f"trial_{number:04d}.log").read_text().split("starts after step ")[1:]
    assert int(starts[0].split()[0]) == 0 and int(starts[1].split()[0]) >= 30, "continued from its checkpoint"
    assert [record["step"] for record in metrics(folder / f"trial_{number:04d}")] == list(range(1, 91))
    both = [(logs / f"{job}_{element}/rank_0.log").read_text() for element in (0, 1)]
    assert all("is complete after 90" in log for log in both), "each worker has done its part"
