"""Which jobs the script starts again: a stand-in for train.py under a real SLURM ends in every way that there is."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import write_recipe
from tests.launch.slurm_cluster import Cluster, cluster, until

__all__ = ["cluster"]
STAND_IN = """\
#!/bin/bash
# In place of train.py: saves, or not, and exits.
save() { if [[ $saves == yes ]]; then mkdir -p "$run/checkpoints" && date +%s%N > "$run/checkpoints/latest"; fi; }
read -r fate saves restarts < "$(dirname "$0")/fate"
run=$(dirname "$0")/runs/tiny
trap 'save; exit 138' USR1
trap 'save; exit 143' TERM
echo started
((SLURM_RESTART_COUNT == restarts)) && exit 0
if [[ $fate == wait ]]; then for _ in {1..600}; do sleep 0.1; done; fi
save
exit "$fate"
"""


class Case(NamedTuple):
    fate: str
    """Exit code, or `wait` until a signal comes."""
    saves: str
    restarts: int
    """Of the job, in the end."""
    state: str
    """Of the job, in the end; COMPLETED: the start after so many restarts is to exit with 0."""
    act: Callable[[Cluster, Path, str], object] | None = None
    options: tuple[str, ...] = ()
    """For `python -m launch slurm`."""


def command(*words: str) -> Callable[[Cluster, Path, str], object]:
    return lambda cluster, folder, job: cluster.run(*(word.replace("JOB", job) for word in words))


def cancel(cluster: Cluster, folder: Path, job: str) -> None:
    result = cluster.launch("cancel", job, "--runs", folder / "runs")
    assert "was asked to save and end" in result.stdout, result.stderr


def preempt(cluster: Cluster, folder: Path, job: str) -> None:
    node = cluster.job(job)["NodeList"]
    cluster.run("sbatch", "-p", "urgent", "-w", node, "--gpus-per-node=4", "-o", "/dev/null", "--wrap", "sleep 1")


CASES = {
    "complete": Case("0", "yes", 0, "COMPLETED"),
    "a mistake": Case("2", "no", 0, "FAILED"),
    "out of time": Case("138", "yes", 2, "COMPLETED"),
    "out of time before the first checkpoint": Case("138", "no", 1, "FAILED"),
    "a lost connection": Case("75", "yes", 2, "COMPLETED"),
    "no connection at all": Case("75", "no", 1, "FAILED"),
    "warned by SLURM": Case("wait", "yes", 1, "COMPLETED", command("scancel", "--batch", "--signal=USR1", "JOB")),
    "requeued by hand": Case("wait", "yes", 1, "COMPLETED", command("scontrol", "requeue", "JOB")),
    "preempted": Case("wait", "yes", 1, "COMPLETED", preempt),
    "cancelled": Case("wait", "yes", 0, "FAILED", cancel),
    "cancelled by scancel": Case("wait", "yes", 0, "CANCELLED", command("scancel", "JOB")),
}


def play(case: Case, cluster: Cluster, folder: Path, corpus: Path) -> dict[str, str]:
    """The job's fields in the end."""
    ends_well = case.restarts if case.state == "COMPLETED" else -1
    (folder / "fate").write_text(f"{case.fate} {case.saves} {ends_well}\n")
    (folder / "stand_in").write_text(STAND_IN)
    (folder / "stand_in").chmod(0o755)
    words = [
        "slurm",
        write_recipe(folder, corpus),
        "--gpus-per-node",
        "1",
        "--time",
        "10",
        "--python",
        folder / "stand_in",
    ]
    place = "nodelist" if case.act is preempt else "exclude"  # whoever is to be preempted has the node for itself
    result = cluster.launch(*words, "--submit", f"--sbatch=--{place}=n5", *case.options)
    assert result.returncode == 0, result.stderr
    job = result.stdout.split(" as job ")[1].split(";")[0]
    if case.act:
        log = folder / f"runs/slurm/tiny/{job}/rank_0.log"
        until(lambda: log.exists() and "started" in log.read_text(), 60, lambda: cluster.job(job))
        case.act(cluster, folder, job)
    ended = cluster.wait_for(job, case.state, seconds=60)
    return {**ended, "log": (folder / f"runs/slurm/tiny/{job}.log").read_text()}


@pytest.fixture(scope="module")
def outcomes(cluster, corpus, tmp_path_factory) -> dict[str, Future]:
    """All cases at once: they wait for SLURM."""
    pool = ThreadPoolExecutor(len(CASES))
    return {
        name: pool.submit(play, case, cluster, tmp_path_factory.mktemp("case"), corpus) for name, case in CASES.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_the_job(outcomes, name):
    ended = outcomes[name].result()
    assert int(ended["Restarts"]) == CASES[name].restarts, ended["log"]
    gives_up = "two starts in a row made no checkpoint" in ended["log"]
    assert gives_up == (CASES[name].saves == "no" and CASES[name].restarts > 0)
