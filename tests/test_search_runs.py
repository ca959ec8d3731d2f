"""A search of real trainings: an absurd rate costs few steps, Ctrl-C loses nothing, and the best recipe is one."""

import json
import signal
import subprocess
import sys

import pytest

from config import load_recipe
from tests.conftest import ROOT, environment, losses, train
from tests.test_resume import steps_done, wait_until

pytestmark = pytest.mark.slow
pytest.importorskip("optuna")
SETTINGS = ("schedule.steps=60", "validation.every_steps=10", "checkpoint.every_steps=20")


def test_a_search_of_real_trainings(recipe, tmp_path):
    words = ["search", str(recipe), *SETTINGS, "--sampler", "grid", "--space", "optimizer.lr=2e-2,1e-6,1e3"]
    words += ["--min-steps", "10"]
    command, folder = [sys.executable, "-m", "tasks", *words], tmp_path / "runs/tiny-search"

    def start() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)

    search = start()
    wait_until(lambda: steps_done(folder / "trial_0000") >= 25, search)
    search.send_signal(signal.SIGINT)
    output = search.communicate(timeout=60)[0]
    assert search.returncode == 130 and "trial 0 is interrupted after" in output, output
    search = start()
    output = search.communicate(timeout=200)[0]
    assert search.returncode == 0, output

    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert len(trials) == 3 and trials[0]["state"] == "complete"
    assert list(losses(folder / "trial_0000")) == list(range(1, 61))
    assert {trial["state"] for trial in trials[1:]} <= {"pruned", "diverged"}
    assert sum(trial["steps"] for trial in trials[1:]) < 100, "of 120"
    plan = train(folder / "best.yaml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert load_recipe(str(folder / "best.yaml")).optimizer.lr == 2e-2
