"""The benchmarks that need a GPU run at tiny sizes on any machine."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.memory import compare
from benchmarks.memory_cases import Case
from benchmarks.memory_published import RUNS, STATES, predicted_gib, states_gb
from tests.conftest import ROOT, environment


@pytest.mark.slow
def test_the_gpu_measurements_run_through(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == list(gpu.PARTS)
    in_fp32, in_bf16 = (row["largest difference"] for row in results["parity"]["rows"])
    assert in_fp32 < 1e-5 and in_bf16 < 1e-2
    assert all(row["gradient of weight"] < 2e-2 for row in results["loss"]["rows"])
    for model in ("gpt2_124m", "llama_1.3b"):
        timed = {row["variant"] for row in results[f"steps:{model}"]["rows"] if "tokens/s" in row}
        assert {"ZeRO 1, compiled", "plain torch, compiled", "eager", "compiled, documents, sdpa"} <= timed
    assert len(results["profile"]["rows"]) == 15
    assert "| ZeRO 1, compiled |" in (tmp_path / "results.md").read_text()


def test_a_part_that_hangs_or_fails_loses_only_itself():
    rows, ended = gpu.run_part("loss", 0.1, True)
    assert rows == [] and ended == "stopped at its limit of 0.1 s"
    rows, ended = gpu.run_part("no such part", 60, True)
    assert rows == [] and "KeyError: 'no such part'" in ended


def test_the_limits_leave_room_in_ten_minutes():
    assert sum(gpu.PARTS.values()) < 580


def test_the_fastest_step_on_whole_rows_is_profiled():
    rows = [
        {"variant": "eager", "tokens/s": 1.0},
        {"variant": "ZeRO 1, compiled", "tokens/s": 2.0},
        {"variant": "compiled, documents, varlen", "tokens/s": 3.0},
        {"variant": "compiled, flash", "problem": "not here"},
    ]
    assert gpu.best_variant(rows) == "ZeRO 1, compiled" and gpu.best_variant([]) == ""


@pytest.mark.slow
def test_measured_memory_of_a_short_run_is_the_planned():
    """Two blocks and two micro-batches; of all parts but the process, most of which is the interpreter."""
    small = ("model.num_layers=2", "model.vocab_size=4096")
    plan, found = compare(Case("gpt2_124m", "zero1", "bf16", 4, 256, small, accumulation=2))
    assert plan["weights"] == pytest.approx(found["weights"], rel=0.01)
    assert plan["optimiser"] == pytest.approx(found["optimiser"], rel=0.01)
    assert plan["kept by forward"] == pytest.approx(found["kept by forward"], rel=0.02)
    assert plan["all tensors"] == pytest.approx(found["all tensors"], rel=0.1)
    assert found["process"] > found["all tensors"]


@pytest.mark.parametrize("run", [run for run in RUNS if "depth 32" not in run.name], ids=lambda run: run.name)
def test_planned_memory_is_within_a_tenth_of_what_others_published(run):
    assert predicted_gib(run) == pytest.approx(run.gib, rel=0.1)


@pytest.mark.parametrize(("stage", "gb"), STATES)
def test_planned_states_are_those_of_the_zero_paper(stage, gb):
    assert states_gb(stage) == pytest.approx(gb, rel=0.005)
