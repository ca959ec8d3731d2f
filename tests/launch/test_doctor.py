"""`python -m launch doctor` as a user starts it, on this machine."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.__main__ import main
from tests.conftest import ROOT, environment


def doctor(*arguments: str | Path, launcher: tuple[str, ...] = (), **extra: str) -> subprocess.CompletedProcess:
    command = [*(launcher or (sys.executable,)), "-m", "launch", "doctor", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(**extra), capture_output=True, text=True, timeout=120)


def test_two_ranks_of_this_machine(recipe, tmp_path):
    result = doctor(recipe, "--ranks", "2", "--json", tmp_path / "found.json")
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    checks = {check["name"]: check for check in found["checks"]}
    assert found["ok"] and found["ranks"] == 2 and len(found["hosts"]) == 1
    for name in ("recipe", "ranks", "same packages", "same code", "torch", "all-reduce", "run folder", "data prepared"):
        assert checks[name]["status"] == "ok", checks[name]
        assert name in result.stdout
    assert [report["correct"] for report in found["measured"]] == [True, True]
    assert all(0 < rate < 1000 for report in found["measured"] for rate in report["bus_gb_s"].values())
    assert all(check["fix"] for check in found["checks"] if check["status"] in ("warn", "fail"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "tiny.yaml"]  # nothing of its own is left


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_fails_on_every_rank_of_torchrun(recipe, tmp_path):
    launcher = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    wrong = ("batch.micro_batch_size=3", "data.datasets.0.path=no/corpus", "--json", str(tmp_path / "found.json"))
    result = doctor(recipe, *wrong, launcher=launcher)
    assert result.returncode == 1 and "[1]:" in result.stderr, result.stderr[-1000:]  # torchrun tells of both
    checks = {check["name"]: check for check in json.loads((tmp_path / "found.json").read_text())["checks"]}
    assert checks["recipe"]["status"] == "fail" and "3" in checks["recipe"]["found"]
    assert checks["all-reduce"]["status"] == "ok"


def test_a_rank_that_never_comes_is_named(tmp_path):
    started = time.monotonic()
    result = doctor(
        "--timeout", "1.5", RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )
    assert result.returncode == 1 and time.monotonic() - started < 60
    assert "1 of 2 did not report" in result.stdout and "skip all-reduce" in result.stdout


def test_a_rank_without_rank_0_says_so():
    port = "1"  # nobody listens there
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    result = doctor("--timeout", "0.5", RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", **where)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("fail rank 1") and "rank 0 does not answer at 127.0.0.1:1" in result.stderr
    assert "fix: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--timeout", "0"], {}, "--timeout 0: give a number of seconds above zero"),
        (["--ranks", "0"], {}, "--ranks 0: at least one is needed"),
        (["--ranks", "2"], {"RANK": "0", "WORLD_SIZE": "1"}, "a launcher has already started these"),
        ([], {"RANK": "0"}, "RANK is set but MASTER_ADDR, MASTER_PORT, WORLD_SIZE is not"),
    ],
)
def test_wrong_calls(monkeypatch, capsys, arguments, environ, message):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err
