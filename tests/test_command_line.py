"""train.py's own answers: --help, --dry-run, --debug."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_recipe
from config.load import recipe_names
from config.parallel import ranks_per_row
from tests import forked
from tests.conftest import ROOT, environment, run_command, train


def test_help_lists_every_section_and_recipe():
    result = train("--help")
    assert result.returncode == 0
    for word in ("--dry-run", "--debug", "row_length", "cooldown_fraction", "gpt_quickstart", "llama_7b"):
        assert word in result.stdout


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_a_plan(name):
    config = load_recipe(name)
    groups = min(8, config.batch.global_batch_size // config.batch.micro_batch_size)
    result = train(name, "--dry-run", "--ranks", str(groups * ranks_per_row(config.engine)))
    assert result.returncode == 0, result.stderr
    for part in (
        "parameters",
        "memory per rank",
        f"× {groups} ",
        "tokens a step",
        "one checkpoint",
        "nothing was started",
    ):
        assert part in result.stdout


def test_ranks_outside_of_a_plan_are_refused(recipe):
    result = train(recipe, "--ranks", "4")
    assert result.returncode == 2 and "--ranks belongs to --dry-run" in result.stderr


def test_unknown_flags_and_missing_recipe_are_refused():
    assert "unrecognized arguments: --fast" in train("gpt_debug", "--fast").stderr
    assert "no recipe given" in train().stderr


def test_debug_shows_every_module_of_the_first_steps_and_is_deterministic(recipe, tmp_path):
    first, second = (train(recipe, "--debug").stdout for _ in range(2))
    for part in ("embed_tokens ", "blocks.1.attention.q_proj ", "lm_head ", "compile  off", "largest gradient"):
        assert part in first
    shown = [line for line in first.splitlines() if line.startswith("final_norm ")]
    assert len(shown) == 2, "the two micro-batches of each of two steps, together"
    reports = [[line for line in text.splitlines() if " | " in line and "e-" in line] for text in (first, second)]
    assert reports[0] == reports[1] != []
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["tiny-debug"]
    tables = [path.name for path in (tmp_path / "runs/tiny-debug/inspect").iterdir()]
    assert sorted(tables) == [f"statistics_step_0000000{step}.rank_0.txt" for step in (1, 2)]


def test_the_command_line_wins_over_what_debug_shrinks(recipe):
    typed = ("engine.precision=bf16_autocast", "data.row_length=16", "schedule.steps=3", "monitor.statistics_steps=[3]")
    output = train(recipe, "--debug", *typed).stdout
    assert "precision  bf16_autocast (engine.precision)" in output and "3 steps, 192 tokens" in output
    assert "statistics of step 3" in output and "statistics of step 1" not in output
    assert "statistics of step 1:" in train(recipe, "--debug", "schedule.steps=1").stdout


def test_breakpoint_works_under_debug(recipe):
    code = "import sys, engine.engine as e; step = e.Engine.step\n"
    code += "def stop(*a): breakpoint(); return step(*a)\n"
    code += f"e.Engine.step = stop\nimport train; sys.exit(train.main([{str(recipe)!r}, '--debug']))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), input="p 6*7\nq\n", capture_output=True, text=True
    )
    assert "(Pdb)" in result.stdout and "42" in result.stdout


def test_debug_never_replaces_a_run_that_is_named(recipe, tmp_path):
    assert train(recipe, "run.name=mine", "schedule.steps=2").returncode == 0
    assert train(recipe, "--debug", "run.name=mine", "schedule.steps=1").returncode == 0
    assert len((tmp_path / "runs/mine/metrics.jsonl").read_text().splitlines()) > 2
    assert (tmp_path / "runs/mine-debug").is_dir()


@pytest.mark.parametrize("name", ["gpt2_124m", "modernbert_base", "t5_base"])
def test_debug_needs_no_corpus(tmp_path, name):
    command = ["train.py", name, "--debug", "schedule.steps=2"]
    process = forked.start(tmp_path / "train", environment(), run_elsewhere, tmp_path, command)
    code, output = forked.finish(process, 100), (tmp_path / "train.out").read_text()
    assert code == 0, (tmp_path / "train.err").read_text()
    assert "corpora/debug, made of this project's own code, stands in for it" in output
    assert f"runs/{name}-debug is complete: 2 steps" in output


def run_elsewhere(folder: Path, command: list[str]) -> None:
    os.chdir(folder)
    run_command(command)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--debug", "--debug under 2 ranks: add --debug-rank N to say which of them (0 to 1) gets the terminal"),
        ("--debug-rank=2", "--debug-rank 2: this launch has 2 rank(s), numbered from 0"),
        ("--debug-rank=-1", "--debug-rank -1: this launch has 2 rank(s)"),
        ("--debug-rank=x", "invalid int value"),
    ],
)
def test_debugging_a_rank_that_is_not_clear_is_refused(recipe, typed, message):
    result = train(recipe, typed, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="x", MASTER_PORT="1")
    assert result.returncode == 2 and message in result.stderr


@pytest.mark.parametrize("mode", ["--dry-run", "--self-check"])
def test_a_terminal_without_a_training_is_refused(recipe, mode):
    result = train(recipe, "--debug-rank=0", mode)
    assert result.returncode == 2 and "--debug-rank belongs to a training" in result.stderr


@pytest.mark.parametrize("ranks", ["0", "-2"])
def test_a_plan_for_no_ranks_is_refused(ranks):
    result = train("gpt_debug", "--dry-run", f"--ranks={ranks}")
    assert result.returncode == 2 and "a run has at least one rank" in result.stderr
