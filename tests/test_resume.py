"""A run survives kill -9, Ctrl-C and SIGTERM: the same command then gives the losses of an undisturbed run."""

import os
import pkgutil
import re
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

import pytest

from tests import forked
from tests.conftest import environment, losses, metrics, run_command, train, write_recipe

LONG = ("schedule.steps=60", "checkpoint.every_steps=10", "validation.every_steps=20", "model.dropout=0.1")


def start(recipe: Path) -> BaseProcess:
    return forked.start(recipe, environment(), run_command, command(recipe))


def command(recipe: Path) -> list[str]:
    return ["train.py", str(recipe), *LONG]


def stop(process: BaseProcess, number: int) -> int:
    """The exit code after a signal."""
    assert process.pid is not None
    os.kill(process.pid, number)
    return forked.finish(process, 60)


def wait_until(condition: Callable[[], bool], process: BaseProcess, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.exitcode is None, "ended too early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.001)


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


def killed_at(point: str, words: list[str]) -> None:
    """Run a command that is killed at its second call of the function named, that is, in a save."""
    calls = 0
    real = pkgutil.resolve_name(point)

    def deadly(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    with patch(point, deadly):
        run_command(words)


@pytest.mark.parametrize("point", POINTS)
def test_kill_in_mid_run_and_in_mid_save(recipe, tmp_path, undisturbed, point):
    run = tmp_path / "runs/tiny"
    process = start(recipe)
    wait_until(lambda: steps_done(run) >= 15, process)
    assert stop(process, signal.SIGKILL) == -signal.SIGKILL

    killed = forked.start(recipe, environment(), killed_at, POINTS[point], command(recipe))
    assert forked.finish(killed, 100) == -signal.SIGKILL, Path(f"{recipe}.err").read_text()
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
    assert stop(process, number) == 128 + number
    output = Path(f"{recipe}.out").read_text() + Path(f"{recipe}.err").read_text()
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
    stop(process, signal.SIGKILL)
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
    again = train(recipe, "schedule.steps=12", "run.resume=must", "monitor.sample_prompt=a b")
    assert again.returncode == 0 and "is complete: 12 steps, validation loss" in again.stdout
    told, typed = (
        dict(re.findall(r"(train longer|start over) .*train\.py (.*)", again.stdout)),
        "'monitor.sample_prompt=a b'",
    )
    assert told["train longer"] == f"{recipe} {typed} schedule.steps=24 run.accept_changes=true"
    assert told["start over"] == f"{recipe} schedule.steps=12 {typed} run.resume=fresh"
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
