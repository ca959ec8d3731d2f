"""A search of real trainings: an absurd rate costs few steps, Ctrl-C loses nothing, and the best recipe is one."""

import json
import signal
from pathlib import Path

import pytest

from config import load_recipe
from tests import forked
from tests.conftest import environment, losses, run_command, task, train
from tests.test_resume import steps_done, stop, wait_until

pytestmark = pytest.mark.slow
pytest.importorskip("optuna")
SETTINGS = ("schedule.steps=60", "validation.every_steps=10", "checkpoint.every_steps=20")


def test_a_search_of_real_trainings(recipe, tmp_path):
    words = ["tasks", "search", str(recipe), *SETTINGS, "--sampler", "grid", "--space", "optimizer.lr=2e-2,1e-6,1e3"]
    words += ["--min-steps", "10"]
    folder = tmp_path / "runs/tiny-search"
    interrupted = forked.start(tmp_path / "search", environment(), run_command, words)
    wait_until(lambda: steps_done(folder / "trial_0000") >= 25, interrupted)
    code, output = stop(interrupted, signal.SIGINT), Path(f"{tmp_path}/search.out").read_text()
    assert code == 130 and "trial 0 is interrupted after" in output, output
    completed = task(*words[1:])
    assert completed.returncode == 0, completed.stdout + completed.stderr

    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert len(trials) == 3 and trials[0]["state"] == "complete"
    assert list(losses(folder / "trial_0000")) == list(range(1, 61))
    assert {trial["state"] for trial in trials[1:]} <= {"pruned", "diverged"}
    assert sum(trial["steps"] for trial in trials[1:]) < 100, "of 120"
    plan = train(folder / "best.yaml", "--dry-run")
    assert plan.returncode == 0, plan.stderr
    assert load_recipe(str(folder / "best.yaml")).optimizer.lr == 2e-2
