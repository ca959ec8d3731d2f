"""`status`, `cancel` and `logs` find runs and say what SLURM and the run know of them."""

import json
from pathlib import Path

import pytest

from config import ConfigError, dump_recipe, load_recipe
from launch.__main__ import main
from launch.slurm.jobs import Record, find_jobs, one_job

RUNNING = (
    "JobId=12 JobName=tiny JobState=RUNNING Reason=None Restarts=2 RunTime=00:10:00 TimeLimit=01:00:00 NodeList=n[1-2]"
)
ARRAY = """\
JobId=70 ArrayJobId=70 ArrayTaskId=1-2%1 JobName=s JobState=PENDING Reason=JobArrayTaskLimit Restarts=0
JobId=71 ArrayJobId=70 ArrayTaskId=0 JobName=s JobState=FAILED Reason=NonZeroExitCode Restarts=0 ExitCode=2:0
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of runs with one job and one sweep, and commands that answer with what is put into `jobs`."""
    jobs, tools = tmp_path / "jobs", tmp_path / "tools"
    jobs.mkdir()
    tools.mkdir()
    answers = {
        "scontrol": f'cat {jobs}/$3 2>/dev/null || {{ echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }}',
        "scancel": f'echo "$*" >> {jobs}/cancelled',
    }
    for name, body in answers.items():
        (tools / name).write_text(f"#!/bin/bash\n{body}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    runs = tmp_path / "runs"
    for folder in ("slurm/tiny", "slurm/s"):
        (runs / folder).mkdir(parents=True)
    Record(runs / "slurm/tiny", "gpt_debug", str(runs), ("tiny",), False, ("12",)).write()
    Record(runs / "slurm/s", "gpt_debug", str(runs), ("s-a", "s-b", "s-c"), True, ("70",)).write()
    (jobs / "12").write_text(RUNNING)
    (jobs / "70").write_text(ARRAY)
    return runs


def test_elements_that_wait_share_a_line_and_are_told_apart(slurm):
    found = find_jobs("s", str(slurm))
    assert [(job.run, job.number, job.state) for job in found] == [
        ("s-a", "70_0", "FAILED"),
        ("s-b", "70_1", "PENDING"),
        ("s-c", "70_2", "PENDING"),
    ]
    assert [job.alive for job in found] == [False, True, True]


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("tiny", ["tiny"]),
        ("12", ["tiny"]),
        ("s-b", ["s-b"]),
        ("70_2", ["s-c"]),
        ("70", ["s-a", "s-b", "s-c"]),
        ("gpt_debug", ["s-a", "s-b", "s-c", "tiny"]),
        (None, ["s-a", "s-b", "s-c", "tiny"]),
    ],
)
def test_a_run_is_found_by_any_of_its_names(slurm, name, runs):
    assert [job.run for job in find_jobs(name, str(slurm))] == runs


def test_a_job_submitted_by_hand_is_found_by_its_log(slurm):
    (slurm / "slurm/tiny/15.log").touch()
    (job,) = find_jobs("tiny", str(slurm))
    assert (job.number, job.state, job.alive) == ("15", "UNKNOWN", False)


def test_unknown_names_and_sweeps(slurm):
    with pytest.raises(
        ConfigError, match=r"tinny: .* under .*/slurm; did you mean tiny\? It knows s, s-a, s-b, s-c, tiny"
    ):
        find_jobs("tinny", str(slurm))
    with pytest.raises(ConfigError, match="s means several runs: choose one of s-a, s-b, s-c"):
        one_job("s", str(slurm))


def test_status_joins_what_slurm_and_the_run_know(slurm, capsys):
    run = slurm / "tiny"
    run.mkdir()
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe("gpt_debug", ["schedule.steps=500"])))
    lines = [{"step": 41, "loss": 3.25, "tokens_per_second": 12_345.6}, {"step": 42, "sample": "text"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4')
    assert main(["status", "--runs", str(slurm)]) == 0
    shown = capsys.readouterr().out
    assert (
        "job 12 RUNNING for 00:10:00 of 01:00:00 on n[1-2], restarted 2 ×\n  step 41/500, loss 3.2500, 12,346 tokens/s"
        in shown
    )
    assert f"job 70_0 FAILED with exit code 2: {slurm}/slurm/s/70_0.log" in shown
    assert "job 70_1 PENDING (JobArrayTaskLimit)" in shown


def test_cancel_asks_a_running_job_and_drops_a_waiting_one(slurm, tmp_path):
    assert main(["cancel", "tiny", "--runs", str(slurm)]) == 0
    assert main(["cancel", "s", "--runs", str(slurm)]) == 0
    assert main(["cancel", "tiny", "--now", "--runs", str(slurm)]) == 0
    assert (tmp_path / "jobs/cancelled").read_text().splitlines() == ["--signal=TERM 12", "70_1", "70_2", "12"]
    assert main(["cancel", "s-a", "--runs", str(slurm)]) == 2


def test_logs_of_a_rank_and_of_the_job(slurm, capfdbinary):
    (slurm / "slurm/tiny/12").mkdir()
    (slurm / "slurm/tiny/12/rank_1.log").write_text("rank 1 was here\n")
    (slurm / "slurm/tiny/12.log").write_text("job 12 starts\n")
    assert main(["logs", "tiny", "--rank", "1", "--runs", str(slurm)]) == 0
    assert main(["logs", "12", "--job", "--runs", str(slurm)]) == 0
    assert capfdbinary.readouterr().out == b"rank 1 was here\njob 12 starts\n"
    assert main(["logs", "tiny", "--runs", str(slurm)]) == 2
    assert b"tiny has no log yet: " in capfdbinary.readouterr().err


def test_a_finished_job_that_slurm_forgot(slurm, capsys):
    Path(slurm.parent / "jobs/12").unlink()
    assert main(["status", "tiny", "--runs", str(slurm)]) == 0
    assert "job 12 has ended, and SLURM no longer knows how" in capsys.readouterr().out
