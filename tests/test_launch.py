"""The same training under every launcher, with one and two ranks, gives the same losses."""

import sys
from pathlib import Path

import pytest

from tests.conftest import losses, train

BIN = Path(sys.executable).parent
ACCELERATE = (str(BIN / "accelerate"), "launch", "--config_file")
LAUNCHERS = {
    "python": (),
    "deepspeed": (str(BIN / "deepspeed"), "--num_gpus", "1"),
    "torchrun": (str(BIN / "torchrun"), "--nproc-per-node", "1"),
    "accelerate": (*ACCELERATE, "launch/accelerate/cpu.yaml"),
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
