"""A run survives kill -9, Ctrl-C and SIGTERM: the same command then gives the losses of an undisturbed run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, losses, metrics, train, write_recipe

LONG = ("schedule.steps=60", "checkpoint.every_steps=10", "validation.every_steps=20", "model.dropout=0.1")


def start(recipe: Path, *overrides: str) -> subprocess.Popen:
    command = [sys.executable, "train.py", str(recipe), *LONG, *overrides]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended too early:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.0002)


def steps_done(run: Path) -> int:
    try:
        return max((r["step"] for r in metrics(run) if "loss" in r), default=0)
    except (FileNotFoundError, ValueError):
        return 0


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    """Losses of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(folder, corpus)
    result = train(recipe, *LONG)
    assert result.returncode == 0, result.stderr
    return losses(folder / "runs/tiny"), evaluations(folder / "runs/tiny")


POINTS = {
    "writing fragments": "engine.state.save_file",
    "hashing": "engine.checkpoint._fingerprint",
    "committing": "os.rename",
    "moving latest": "os.replace",
}


def kill_at(point: str) -> str:
    """A program that runs train.py and is killed at its second call of the function named, that is, in a save."""
    return f"""
import os, signal, sys
from unittest.mock import patch
import engine.checkpoint, engine.state, train
real = {point}
calls = []
def deadly(*arguments, **options):
    calls.append(1)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
with patch({point!r}, deadly):
    train.main(sys.argv[1:])
"""


@pytest.mark.parametrize("point", POINTS)
def test_kill_in_mid_run_and_in_mid_save(recipe, tmp_path, undisturbed, point):
    run = tmp_path / "runs/tiny"
    process = start(recipe)
    wait_until(lambda: steps_done(run) >= 15, process)
    process.send_signal(signal.SIGKILL)
    process.wait()

    command = [sys.executable, "-c", kill_at(POINTS[point]), str(recipe), *LONG]
    killed = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert steps_done(run) < 60

    result = train(recipe, *LONG)
    assert result.returncode == 0, result.stderr
    assert not list((run / "checkpoints").glob(".tmp-*"))
    assert losses(run) == undisturbed[0]
    assert evaluations(run) == undisturbed[1]


def evaluations(run: Path) -> list[dict]:
    return [record for record in metrics(run) if "validation_loss" in record or "sample" in record]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_saves_says_so_and_continues(recipe, tmp_path, undisturbed, number):
    run = tmp_path / "runs/tiny"
    process = start(recipe)
    wait_until(lambda: steps_done(run) >= 13, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    stopped = steps_done(run)
    assert f"stopped after step {stopped:,} and saved" in output
    assert "Traceback" not in output
    assert (run / f"checkpoints/step_{stopped:08d}/manifest.json").exists()

    result = train(recipe, *LONG)
    assert result.returncode == 0, result.stderr
    assert losses(run) == undisturbed[0]
    assert evaluations(run) == undisturbed[1]


def test_a_damaged_checkpoint_is_skipped_with_a_message(recipe, tmp_path, undisturbed):
    run = tmp_path / "runs/tiny"
    process = start(recipe)
    wait_until(lambda: steps_done(run) >= 45, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    (shard,) = (newest / "fragments").iterdir()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)

    result = train(recipe, *LONG)
    assert result.returncode == 0, result.stderr
    assert f"checkpoint {newest} is damaged and skipped: fragments/rank_00000.safetensors" in result.stdout
    assert losses(run) == undisturbed[0]


def test_a_finished_run_says_so_and_starting_over_sets_it_aside(recipe, tmp_path):
    assert train(recipe).returncode == 0
    first = losses(tmp_path / "runs/tiny")
    again = train(recipe)
    assert again.returncode == 0 and "is complete: 12 steps, validation loss" in again.stdout
    assert "train longer" in again.stdout and "start over" in again.stdout
    assert losses(tmp_path / "runs/tiny") == first

    fresh = train(recipe, "run.resume=fresh")
    assert fresh.returncode == 0 and f"set aside as {tmp_path}/runs/tiny.1" in fresh.stdout
    assert losses(tmp_path / "runs/tiny.1") == first == losses(tmp_path / "runs/tiny")


def test_only_the_newest_checkpoints_are_kept(recipe, tmp_path):
    often, folder = ("checkpoint.every_steps=2", "checkpoint.keep_last=2"), tmp_path / "runs/tiny/checkpoints"
    train(recipe, *often, "validation.keep_best=true", "schedule.name=constant", "schedule.steps=8")
    best = (folder / "best").read_text().strip()
    assert {path.name for path in folder.glob("step_*")} == {best, "step_00000006", "step_00000008"}
    train(recipe, *often, "validation.keep_best=false", "schedule.name=constant")
    assert not (folder / "best").exists(), "it would name one that is gone"
    assert sorted(p.name for p in folder.glob("step_*")) == ["step_00000010", "step_00000012"]
    assert (folder / "latest").read_text().strip() == "step_00000012"
    assert not [name for name in os.listdir(folder) if name.startswith(".tmp")]


def test_a_run_that_saves_nothing_says_so(recipe, tmp_path):
    result = train(recipe, "checkpoint.every_steps=0")
    assert result.returncode == 0, result.stderr
    assert "nothing was saved, as checkpoint.every_steps is 0" in result.stdout
    assert not list((tmp_path / "runs/tiny/checkpoints").glob("*"))
    assert len(losses(tmp_path / "runs/tiny")) == 12
