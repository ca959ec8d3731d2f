"""The same training under every launcher gives the same losses, on two ranks as on one."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import losses, train

BIN = Path(sys.executable).parent
ACCELERATE = (str(BIN / "accelerate"), "launch", "--config_file")
LAUNCHERS = {
    "python": (),
    "deepspeed": (str(BIN / "deepspeed"), "--num_gpus", "1"),
    "deepspeed 2": (str(BIN / "deepspeed"), "--num_gpus", "2"),
    "torchrun 2": (str(BIN / "torchrun"), "--nproc-per-node", "2"),
    "accelerate 2": (*ACCELERATE, "launch/accelerate/cpu_2.yaml"),
}


@pytest.mark.slow
def test_every_launcher_gives_the_same_losses(recipe, tmp_path):
    curves = {}
    for name, launcher in LAUNCHERS.items():
        run = name.replace(" ", "-")
        result = train(recipe, f"run.name={run}", launcher=launcher, MASTER_PORT="29713")
        assert result.returncode == 0, f"{name}:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
        ranks = "2 ranks" if name.endswith("2") else "1 rank"
        assert f"accumulation × {ranks};" in result.stdout, f"{name} did not start {ranks}"
        curves[name] = losses(tmp_path / "runs" / run)
    reference = curves["python"]
    assert len(reference) == 12
    for name, curve in curves.items():
        difference = max(abs(curve[step] - reference[step]) for step in reference)
        tolerance = 1e-5 if name.endswith("2") else 0.0
        assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["sequence_parallel", "tensor_parallel"])
def test_ranks_that_share_rows_train_as_one_and_one_continues_them(recipe, tmp_path, shared):
    run = tmp_path / "runs/shared"
    plain = train(recipe, "run.name=plain")
    assert plain.returncode == 0, plain.stderr[-2000:]
    result = train(recipe, "run.name=shared", f"engine.{shared}=2", ranks=2)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    assert "accumulation × 1 group of 2 ranks;" in result.stdout
    curve = losses(run)
    for newest in (run / "checkpoints").glob("step_00000012"):
        shutil.rmtree(newest)
    continued = train(recipe, "run.name=shared", "run.resume=must")
    assert continued.returncode == 0, continued.stderr[-2000:]
    for found in (curve, losses(run)):
        expected = losses(tmp_path / "runs/plain")
        assert max(abs(found[step] - expected[step]) for step in expected) <= 1e-5
