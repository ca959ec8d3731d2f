"""A search with trainings that take no time: their loss has its minimum at a learning rate of 0.01, and is nan above 1."""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tasks.search.study
from config import load_recipe
from tasks.__main__ import main
from tasks.search import add_arguments
from tasks.search.question import Question, launcher_words, read_question
from tasks.search.results import comparable
from tasks.search.study import interrupt, open_study, origin
from tests.conftest import ROOT, environment, metrics

optuna = pytest.importorskip("optuna")
from optuna.distributions import FloatDistribution  # noqa: E402

LAUNCHER = f"{sys.executable} {Path(__file__).with_name('stand_in_training.py')}"
STEPS = ("schedule.steps=90", "validation.every_steps=10")
LR = "optimizer.lr=log:1e-3:1e2"


def command(recipe: Path, *more: str) -> list[str]:
    return ["search", str(recipe), *STEPS, "--launcher", LAUNCHER, "--space", LR, *more]


def start(recipe: Path, *more: str, **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks", *command(recipe, *more)],
        cwd=ROOT, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def found(folder: Path) -> dict:
    return json.loads((folder / "search.json").read_text())


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "runs/tiny-search"


def test_it_finds_the_best_rate_and_says_so(recipe, folder, capsys):
    assert (
        main(
            command(
                recipe, "--trials", "12", "--pruner", "none", "model.num_kv_heads=1", "--space", "model.num_heads=2,3,4"
            )
        )
        == 0
    )
    printed = capsys.readouterr().out
    result = found(folder)
    assert len(result["trials"]) == 12
    own = result["trials"][0]
    assert own["own"] and own["params"] == {"optimizer.lr": 0.01, "model.num_heads": "4"}

    states = {trial["state"] for trial in result["trials"]}
    assert states == {"complete", "refused", "diverged"}
    for trial in result["trials"]:
        lr, heads = trial["params"]["optimizer.lr"], trial["params"]["model.num_heads"]
        assert (trial["state"] == "refused") == (heads == "3")
        assert (trial["state"] == "diverged") == (heads != "3" and lr > 1)
        words = {
            "complete": "",
            "refused": "hidden_size 32 is not a multiple of num_heads 3",
            "diverged": "the loss is nan",
        }
        assert words[trial["state"]] in trial["message"]

    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    best = min(complete, key=lambda trial: trial["value"])
    assert result["best"] == best["number"] and f"best          trial {best['number']}:" in printed
    assert set(result["importance"]) == {"optimizer.lr", "model.num_heads"}
    kept = [path.parent.name for path in folder.glob("trial_*/checkpoints")]
    assert kept == [f"trial_{best['number']:04d}"]

    page = (folder / "search.html").read_text()
    assert page.count('<circle class="dot') == 4 * len(complete), "history, curves and two slices"
    assert page.count('<circle class="dot best"') == 4 and page.count("<rect") == 2
    assert "http" not in page and "src=" not in page, "it needs nothing else"
    assert (folder / "importance.png").read_bytes()[:4] == b"\x89PNG"

    recipe_of_best = load_recipe(str(folder / "best.yaml"))
    assert recipe_of_best.optimizer.lr == pytest.approx(best["params"]["optimizer.lr"], rel=1e-5)
    assert recipe_of_best.run.name == "tiny-search-best" and recipe_of_best.schedule.steps == 90


def test_the_same_command_goes_on_and_another_question_is_refused(recipe, folder, capsys):
    assert main(command(recipe, "--trials", "2")) == 0
    first = found(folder)["trials"]
    assert main(command(recipe, "--trials", "2")) == 0
    assert found(folder)["trials"] == first
    assert main(command(recipe, "--trials", "4")) == 0
    assert len(found(folder)["trials"]) == 4 and found(folder)["trials"][:2] == first
    capsys.readouterr()
    assert main(command(recipe, "--trials", "4", "optimizer.weight_decay=0.3")) == 2
    assert "is another search:\n  optimizer.weight_decay: " in capsys.readouterr().err
    assert main([*command(recipe, "--trials", "4"), "--value", "last"]) == 2
    assert 'value: "best" → "last"' in capsys.readouterr().err
    assert main(["search", str(recipe), *STEPS, "--sampler", "grid", "--space", "optimizer.lr=1e-3,1e-2"]) == 2
    assert "grid: false → true" in capsys.readouterr().err
    (folder / "search.db").unlink()
    assert main(command(recipe)) == 2
    assert "belongs to a search that sqlite:///" in capsys.readouterr().err


def test_a_grid_has_every_combination_once(recipe, folder):
    words = ["search", str(recipe), *STEPS, "--launcher", LAUNCHER, "--sampler", "grid", "--jobs", "3"]
    assert (
        main([*words, "--space", "optimizer.lr=1e-3,1e-2", "--space", "model.num_layers=int:2:4:2", "--pruner", "none"])
        == 0
    )
    tried = [tuple(trial["params"].values()) for trial in found(folder)["trials"]]
    assert sorted(tried) == [("1e-2", 2), ("1e-2", 4), ("1e-3", 2), ("1e-3", 4)]


def asked(recipe: Path) -> Question:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_question(parser.parse_args(command(recipe)[1:]))


def test_half_a_run_is_trained_before_a_trial_may_be_pruned(recipe):
    question = asked(recipe)
    assert (question.min_steps, question.reduction) == (45, 3)


def test_an_interrupted_trial_counts_once_when_others_are_pruned(recipe):
    """Of five at a rung one in three is one: the second best does not go on. Of six it would."""
    question = asked(recipe)
    study = open_study(question)

    def reach_rung(value: float) -> optuna.Trial:
        trial = study.ask({axis.setting: axis.distribution for axis in question.axes})
        trial.report(value, 45)
        return trial

    for value in (1.0, 5.0, 6.0):
        trial = reach_rung(value)
        trial.should_prune()
        study.tell(trial, value)
    lost = reach_rung(7.0)
    lost.should_prune()
    interrupt(study, study.get_trials()[lost.number])
    continued = study.ask({axis.setting: axis.distribution for axis in question.axes})
    assert origin(study.get_trials()[continued.number]) == lost.number
    assert reach_rung(2.0).should_prune() and not reach_rung(0.5).should_prune()


def test_the_best_is_trained_for_twice_its_own_steps(recipe, folder, capsys):
    words = ["search", str(recipe), "validation.every_steps=10", "--launcher", LAUNCHER, "--trials", "2"]
    assert main([*words, "--space", "schedule.steps=90,91", "--space", "optimizer.lr=log:1e-3:1e-1"]) == 0
    best = found(folder)["trials"][found(folder)["best"]]["params"]
    assert f"best.yaml schedule.steps={2 * int(best['schedule.steps'])}" in capsys.readouterr().out


def test_what_mattered_is_told_from_first_validations_beside_a_trial_that_diverged():
    """Which has a mark before them, worse than any number, for the sampler."""
    study, distributions = optuna.create_study(), {"lr": FloatDistribution(0, 1)}
    for lr in (0.1, 0.2, 0.4, 0.8, 1.0):
        trial = study.ask(distributions)
        trial.report(math.nan if lr == 1.0 else lr, 6 if lr == 1.0 else 10)
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    basis, judged = comparable(study)
    assert basis == "4 trials after 10 steps" and [trial.value for trial in judged.trials] == [0.1, 0.2, 0.4, 0.8]


def test_bad_trials_are_stopped_early(recipe, folder, monkeypatch):
    monkeypatch.setenv("STEP_SECONDS", "0.02")
    rates = "1e-2,3e-4,1e-1"
    words = ["search", str(recipe), *STEPS, "--launcher", LAUNCHER, "--sampler", "grid", "--keep-checkpoints"]
    words += ["--min-steps", "10"]
    assert main([*words, "--space", f"optimizer.lr={rates}"]) == 0
    trials = found(folder)["trials"]
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "pruned"]
    for trial in trials[1:]:
        steps = metrics(folder / f"trial_{trial['number']:04d}")[-1]["step"]
        assert 10 <= trial["steps"] == steps < 90, "validated once, then ended"
        saved = folder / f"trial_{trial['number']:04d}/checkpoints/latest"
        assert int(saved.read_text()) == steps, "SIGTERM lets it save"


def test_the_recipes_own_metric_is_made_large(tmp_path):
    recipe = tmp_path / "labels.yaml"
    recipe.write_text(f"""
run: {{folder: {tmp_path}/runs}}
data: {{examples: {{train: train.jsonl, valid: valid.jsonl, tokenizer: tokenizer.json}}, row_length: 32}}
model: {{family: bert, vocab_size: 512, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64}}
objective: {{name: classification, labels: [bad, good]}}
batch: {{global_batch_size: 8, micro_batch_size: 2}}
optimizer: {{lr: 1e-3}}
validation: {{metric: accuracy}}
""")
    words = ["--sampler", "grid", "--pruner", "none", "--value", "last"]
    assert (
        main(["search", str(recipe), *STEPS, *words, "--launcher", LAUNCHER, "--space", "optimizer.lr=1e-1,1e-2,1e-3"])
        == 0
    )
    result = found(tmp_path / "runs/labels-search")
    values = {trial["params"]["optimizer.lr"]: trial["value"] for trial in result["trials"]}
    assert result["direction"] == "maximize" and result["metric"] == "validation_accuracy"
    assert values["1e-2"] == max(values.values()) == pytest.approx(1 / (1 + 10 / 90))
    assert result["trials"][result["best"]]["params"] == {"optimizer.lr": "1e-2"}


def starts(folder: Path, number: int) -> list[int]:
    """Steps after which the training of a trial was started."""
    log = folder / f"trial_{number:04d}.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[-1]) for line in lines if line.startswith("starts after step")]


def wait_for_step(folder: Path, number: int, step: int, search: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    path = folder / f"trial_{number:04d}/metrics.jsonl"
    while not (path.exists() and f'"step": {step},' in path.read_text()):
        assert search.poll() is None, search.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_an_interrupted_search_goes_on_where_it_was(recipe, folder, number):
    """Trials that train continue from what they saved, and the search chooses what it would have chosen."""
    slow = {"STEP_SECONDS": "0.05"}
    options = ("--trials", "4", "--jobs", "2", "--pruner", "none")
    search = start(recipe, *options, **slow)
    wait_for_step(folder, 0, 35, search)
    search.send_signal(number)
    output = search.communicate(timeout=60)[0]
    if number == signal.SIGINT:
        assert search.returncode == 130 and "interrupted; the same command continues the search" in output
        assert [trial["state"] for trial in found(folder)["trials"][:1]] == ["waiting"]
    assert main(command(recipe, *options)) == 0
    trials = found(folder)["trials"]
    assert len(trials) == 4 and "running" not in {trial["state"] for trial in trials}
    first, second = starts(folder, 0)
    assert first == 0 and second >= 30, "continued from its checkpoint"
    assert [record["step"] for record in metrics(folder / "trial_0000")] == list(range(1, 91))
    assert main(command(recipe, *options, "--name", "undisturbed")) == 0
    same = found(folder.with_name("undisturbed"))["trials"]
    assert {t["params"]["optimizer.lr"] for t in trials[:2]} == {t["params"]["optimizer.lr"] for t in same[:2]}
    assert trials[0]["value"] == same[0]["value"] and trials[0]["curve"] == same[0]["curve"]


@pytest.mark.slow
def test_two_searches_at_once_are_two_workers_of_one(recipe, folder):
    both = [start(recipe, "--trials", "7", "--jobs", "2", "--pruner", "none") for _ in range(2)]
    outputs = [search.communicate(timeout=100)[0] for search in both]
    assert [search.returncode for search in both] == [0, 0], outputs
    assert len(found(folder)["trials"]) == 7


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "0"], "--trials 0: at least 1"),
        (["--launcher", "deepsped --num_gpus 2"], "deepsped is neither on PATH nor in"),
        (["validation.every_steps=0"], "validation.every_steps 0 turns them off"),
        (["--sampler", "grid"], "--sampler grid tries all values, and optimizer.lr=log:0.001:100 has no end of them"),
        (["--storage", "postgres"], "expected sqlite:///FILE or postgresql://"),
        (["--storage", "sqlite:////no/where/search.db"], "unable to open database file"),
        (["--jobs", "3"], "--jobs 3 trains more at a time than there are GPUs (2)"),
        (["--report"], "tiny-search is no search yet"),
        (["--report", "--slurm", "--nodes 1"], "tiny-search is no search yet"),
        (["--pruner", "none", "--min-steps", "20"], "--min-steps has no effect without --pruner asha or median"),
        (["--pruner", "median", "--reduction", "2"], "--reduction has no effect without --pruner asha"),
        (["--sampler", "grid", "--seed", "1"], "--seed has no effect without --sampler tpe or random"),
        (["--workers", "4"], "--workers has no effect without --slurm"),
        (["--min-steps", "90"], "--min-steps 90 is not below schedule.steps 90, so that nothing would be pruned"),
        (["optimizer.lrr=1"], "unknown setting; did you mean lr?"),
    ],
)
def test_wrong_inputs_are_one_message(recipe, capsys, monkeypatch, words, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert main(command(recipe, *words)) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_launcher_is_found_beside_this_interpreter(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = launcher_words("torchrun --standalone --nproc-per-node 2")
    assert found == [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]


def test_a_missing_library_is_one_message(recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command(recipe)) == 2
    assert "pip install -e '.[search]'" in capsys.readouterr().err


def test_a_search_whose_trials_all_fail_ends(recipe, capsys):
    """Each fails before its first step, with the same message."""
    failing = f"{sys.executable} -c \"import sys; print('error: no corpus here'); sys.exit(2)\""
    assert main([*command(recipe), "--launcher", failing]) == 2
    assert (
        "3 trials have failed and none has trained" in (error := capsys.readouterr().err) and "no corpus here" in error
    )


def test_a_trial_whose_worker_died_on_another_host_is_taken_back(recipe, folder, monkeypatch):
    """It is known by its heartbeat alone, which has stopped."""
    monkeypatch.setattr(tasks.search.study, "STALE_SECONDS", 1)
    assert main(command(recipe, "--trials", "1")) == 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="tiny-search", storage=f"sqlite:///{folder}/search.db")
    lost = study.ask({"optimizer.lr": FloatDistribution(1e-3, 1e2, log=True)})
    lost.report(0.5, 10)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
    study._storage._backend.record_heartbeat(lost._trial_id)
    assert main(command(recipe, "--trials", "2")) == 0
    assert found(folder)["trials"][1]["state"] == "running", "its heart may still beat"
    time.sleep(2.1)
    assert main(command(recipe, "--trials", "2", "--pruner", "none")) == 0
    taken_back = found(folder)["trials"][1]
    assert taken_back["number"] == lost.number and taken_back["params"] == lost.params
    assert taken_back["state"] in ("complete", "diverged") and taken_back["curve"][0] == [10, 0.5]
