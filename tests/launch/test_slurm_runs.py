"""Trainings under a real SLURM: through the script that `python -m launch slurm` writes, interrupted in every way, equal in the end.

All scenarios start together, because they mostly wait for SLURM; each test then takes the outcome of its own.
"""

import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import losses, metrics, write_recipe
from tests.launch.slurm_cluster import Cluster, cluster, environ_of, until
from tests.launch.test_slurm_requeue import Case, play

__all__ = ["cluster"]
pytestmark = pytest.mark.slow

STEPS = 40
SETTINGS = (f"schedule.steps={STEPS}", "checkpoint.every_steps=1000", "validation.every_steps=0")
SLOW_PYTHON = """\
#!{python}
# train.py with longer steps, so that there is time to interrupt it.
import os, runpy, sys, time
sys.argv = [word for word in sys.argv[1:] if word != "-u"]
sys.path[0] = "."
import engine.engine
step = engine.engine.Engine.step
def slow_step(*arguments):
    time.sleep(float(os.environ.get("STEP_SECONDS", 0.25)))
    return step(*arguments)
engine.engine.Engine.step = slow_step
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Lab:
    """A folder for the runs of one scenario."""

    cluster: Cluster
    folder: Path
    corpus: Path
    slow_python: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def submit(self, nodes: str, *options: str, ranks: int = 1) -> str:
        """Submit the tiny recipe to the nodes named, with so many ranks on each. Returns the job's number."""
        recipe = write_recipe(self.folder, self.corpus)
        words = ["slurm", recipe, *SETTINGS, "--submit", "--nodes", nodes.count(",") + 1, "--gpus-per-node", ranks]
        words += ["--time", "10", "--python", self.slow_python, f"--sbatch=--nodelist={nodes}"]
        result = self.cluster.launch(*words, *options)
        assert result.returncode == 0, result.stderr
        return result.stdout.split(" as job ")[1].split(";")[0]

    def launch(self, *words: str) -> str:
        """Output of another command of `python -m launch`."""
        result = self.cluster.launch(*words, "--runs", self.runs)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def log(self, name: str) -> str:
        path = self.runs / "slurm/tiny" / name
        return path.read_text() if path.exists() else ""

    def steps(self, run: str = "tiny") -> int:
        try:
            return max(losses(self.runs / run), default=0)
        except (FileNotFoundError, ValueError):
            return 0

    def wait_for_step(self, step: int, run: str = "tiny") -> None:
        until(lambda: self.steps(run) >= step, 100, lambda: f"step {self.steps(run)} of {run}\n{self.everything()}")

    def everything(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()}" for path in self.runs.glob("slurm/**/*.log"))


def undisturbed(lab: Lab) -> dict[int, float]:
    """Losses of a run that nothing interrupts, watched to its end."""
    job = lab.submit("n3,n4")
    followed = lab.launch("logs", "-f", "tiny")
    assert f"step {STEPS}/{STEPS}" in followed and "is complete" in followed
    lab.cluster.wait_for(job, "COMPLETED")
    assert f"job {job} COMPLETED" in lab.launch("status", "tiny")
    assert "train.py exited with 0" in lab.launch("logs", "tiny", "--job")
    return losses(lab.runs / "tiny")


def preempted_requeued_and_bereft_of_a_node(lab: Lab) -> dict[int, float]:
    job = lab.submit("n1,n2")
    lab.wait_for_step(4)
    urgent = ("-p", "urgent", "-w", "n2", "--gpus-per-node=4", "-o", "/dev/null", "--wrap", "sleep 1")
    assert lab.cluster.run("sbatch", *urgent).returncode == 0
    lab.cluster.wait_for(job, "PENDING")
    first = stopped_at(lab.log(f"{job}/rank_0.log"))[0]
    assert "on SIGTERM; the same command continues from there" in lab.log(f"{job}/rank_0.log")
    assert "train.py exited with 143" in lab.log(f"{job}.log") and f"job {job} is requeued" in lab.log(f"{job}.log")

    lab.cluster.wait_for(job, "RUNNING")
    lab.wait_for_step(first + 4)
    assert lab.cluster.run("scontrol", "requeue", job).returncode == 0
    lab.cluster.wait_for(job, "PENDING")
    second = stopped_at(lab.log(f"{job}/rank_0.log"))[1]
    assert f"job {job} PENDING" in lab.launch("status", job)

    lab.cluster.wait_for(job, "RUNNING")
    lab.wait_for_step(second + 2)
    lab.cluster.kill_node("n2")
    until(lambda: lab.cluster.job(job)["Restarts"] == "3", 60, lab.everything)
    lab.cluster.start_node("n2")
    done = lab.cluster.wait_for(job, "COMPLETED")
    assert done["Restarts"] == "3"
    assert "restarted 3 ×" in lab.launch("status")
    starts = [line.split("restart ")[1][0] for line in lab.log(f"{job}.log").splitlines() if "starts (restart" in line]
    assert starts == ["0", "1", "2", "3"]
    return losses(lab.runs / "tiny")


def out_of_time(lab: Lab) -> dict[int, float]:
    """A limit of two minutes, of which the run uses half a minute at a time, under torchrun."""
    options = ("--tasks", "node", "--time", "2", "--warning-seconds", "5", "checkpoint.reserve_seconds=92")
    python = (
        f"export STEP_SECONDS=0.7 PYTHON_EXEC={lab.slow_python}"  # torchrun's name for what it starts the ranks with
    )
    job = lab.submit("n3", *options, "--python", sys.executable, "--env-setup", python, ranks=2)
    until(lambda: "is requeued" in lab.log(f"{job}.log"), 100, lab.everything)
    assert "before the end of the allocation; the same command" in lab.log(f"{job}/rank_0.log")
    assert 0 < stopped_at(lab.log(f"{job}/rank_0.log"))[0] == lab.steps() < STEPS
    assert "train.py exited with 138" in lab.log(f"{job}.log")
    lab.cluster.wait_for(job, "COMPLETED", seconds=140)
    return losses(lab.runs / "tiny")


def warned_of_the_limit(lab: Lab) -> None:
    """SLURM's own signal, for what does not watch the time: at least half of a minute before the end, so at once or soon."""
    case = Case("wait", "yes", 1, "COMPLETED", options=("--time", "1", "--warning-seconds", "30"))
    ended = play(case, lab.cluster, lab.folder, lab.corpus)
    assert ended["Restarts"] == "1" and "train.py exited with 138" in ended["log"]


def swept(lab: Lab) -> None:
    """Two runs at two rates; the second one is requeued and still is itself."""
    job = lab.submit("n4", "--array", "optimizer.lr=1e-2,1e-3")
    slow = "tiny-lr_1e-3"
    lab.wait_for_step(3, slow)
    assert lab.cluster.run("scontrol", "requeue", f"{job}_1").returncode == 0
    lab.cluster.wait_for(f"{job}_1", "PENDING")
    lab.cluster.wait_for(f"{job}_1", "COMPLETED")
    lab.cluster.wait_for(f"{job}_0", "COMPLETED")
    status = lab.launch("status", "tiny")
    assert f"job {job}_0 COMPLETED" in status and f"job {job}_1 COMPLETED, restarted 1 ×" in status
    assert f"step {STEPS}/{STEPS}" in lab.launch("status", slow)
    rates = [metrics(lab.runs / run)[-1]["lr"] for run in ("tiny-lr_1e-2", slow)]
    assert rates[0] == pytest.approx(10 * rates[1])
    assert len(losses(lab.runs / slow)) == STEPS


def one_rank_killed(lab: Lab) -> None:
    job = lab.submit("n4", ranks=2)
    lab.wait_for_step(2)
    of_rank_1 = {"SLURM_JOB_ID": job, "SLURM_PROCID": "1"}
    ranks = [p for p in lab.cluster.processes() if of_rank_1.items() <= environ_of(p).items()]
    assert ranks
    for rank in ranks:
        rank.send_signal(signal.SIGKILL)
    ended = lab.cluster.wait_for(job, "FAILED", seconds=40)
    assert ended["Restarts"] == "0"
    assert f"job {job} FAILED with exit code" in lab.launch("status", "tiny")
    assert "task 1: Killed" in lab.log(f"{job}.log")


def cancelled(lab: Lab) -> None:
    job = lab.submit("n4")
    lab.wait_for_step(3)
    assert f"job {job} RUNNING for" in lab.launch("status", "tiny")
    again = lab.cluster.launch("slurm", lab.folder / "tiny.yaml", "--nodes", "1", "--gpus-per-node", "1", "--submit")
    assert again.returncode == 2 and f"tiny already has job {job}, RUNNING" in again.stderr
    assert "was asked to save and end" in lab.launch("cancel", "tiny")
    lab.cluster.wait_for(job, "FAILED", "CANCELLED")
    (step,) = stopped_at(lab.log(f"{job}/rank_0.log"))
    assert (lab.runs / f"tiny/checkpoints/step_{step:08d}").is_dir()
    assert "requeued" not in lab.log(f"{job}.log")
    missing = lab.cluster.launch("cancel", "tiny", "--runs", lab.runs)
    assert missing.returncode == 2 and "no job that waits or runs" in missing.stderr


def under_plain_srun(lab: Lab) -> None:
    """Without MASTER_ADDR: two tasks on one node find each other, and names that do not resolve are explained."""
    recipe = write_recipe(lab.folder, lab.corpus)
    train = (sys.executable, "train.py", recipe, "schedule.steps=2")
    apart = lab.cluster.run("srun", "--nodes=2", "--ntasks=2", "--time=5", *train)
    assert apart.returncode != 0 and "the name 'n1' does not resolve here: export MASTER_ADDR" in apart.stderr
    together = lab.cluster.run("srun", "--nodes=1", "--ntasks=2", "--time=5", *train)
    assert together.returncode == 0, together.stderr
    assert "accumulation × 2 ranks" in together.stdout and lab.steps() == 2


def refused(lab: Lab) -> None:
    recipe = write_recipe(lab.folder, lab.corpus)
    result = lab.cluster.launch(
        "slurm", recipe, "--nodes", "8", "--gpus-per-node", "1", "--submit", "batch.micro_batch_size=1"
    )
    assert result.returncode == 2
    assert "sbatch refused" in result.stderr and "`sinfo" in result.stderr and "node" in result.stderr.lower()
    unknown = lab.cluster.launch("status", "tinny", "--runs", lab.runs)
    assert unknown.returncode == 2 and "did you mean tiny?" in unknown.stderr


def stopped_at(log: str) -> list[int]:
    """Steps after which the run says it stopped."""
    return [int(line.split()[3].rstrip(",")) for line in log.splitlines() if line.startswith("stopped after step")]


SCENARIOS: tuple[Callable[[Lab], object], ...] = (
    preempted_requeued_and_bereft_of_a_node, out_of_time, undisturbed, warned_of_the_limit, swept, one_rank_killed, cancelled,
    under_plain_srun, refused,
)  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(cluster, corpus, tmp_path_factory) -> dict[str, Future]:
    slow_python = tmp_path_factory.mktemp("python") / "slow_python"
    slow_python.write_text(SLOW_PYTHON.format(python=sys.executable))
    slow_python.chmod(0o755)
    pool = ThreadPoolExecutor(len(SCENARIOS))
    return {
        scenario.__name__: pool.submit(
            scenario, Lab(cluster, tmp_path_factory.mktemp(scenario.__name__), corpus, slow_python)
        )
        for scenario in SCENARIOS
    }


@pytest.mark.parametrize(
    "scenario", ["swept", "warned_of_the_limit", "one_rank_killed", "cancelled", "under_plain_srun", "refused"]
)
def test_scenario(outcomes, scenario):
    outcomes[scenario].result()


@pytest.mark.parametrize("scenario", ["preempted_requeued_and_bereft_of_a_node", "out_of_time"])
def test_an_interrupted_run_has_the_losses_of_an_undisturbed_one(outcomes, scenario):
    curve = outcomes["undisturbed"].result()
    assert sorted(curve) == list(range(1, STEPS + 1))
    assert outcomes[scenario].result() == curve
