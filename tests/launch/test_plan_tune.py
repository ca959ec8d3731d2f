"""`plan --tune`: what is tried, what is learnt from it, what is kept. The last test trains for real."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from config import load_recipe
from config.hardware import Cluster, find_accelerator, find_network
from launch.__main__ import main
from launch.plan import room, tune
from launch.plan.option import evaluate
from launch.plan.trial import Measured
from tests.conftest import ROOT, environment

ARGUMENTS = ("gpt2_124m", "--gpu", "cpu", "--gpus", "2", "--memory", "60")


@pytest.fixture
def machine(monkeypatch):
    """Trains nothing: twice the predicted memory, out of it above `limit_gb`, 1,000 tokens/s for each row of a micro-batch."""
    fake = SimpleNamespace(tried=[], limit_gb=60.0, interrupt_at=99)

    def run_trial(recipe, settings, ds_config, ranks, seconds):
        if len(fake.tried) == fake.interrupt_at:
            raise KeyboardInterrupt
        size = settings["batch.micro_batch_size"]
        fake.tried.append((settings["engine.ds_config"], settings["engine.activation_checkpointing"], size))
        needed = 2 * fake.predicted(settings, ds_config)
        if needed > fake.limit_gb:
            return Measured("out of memory", message="killed")
        return Measured("measured", 1000.0 * size, needed, 10)

    def predicted(settings, ds_config):
        overrides = [f"{name}={value}" for name, value in settings.items() if name != "engine.ds_config"]
        cluster = Cluster(room.cpu_here(2), 2, 2, find_network("loopback"))
        return evaluate(load_recipe("gpt2_124m", overrides), cluster, ds_config).device_bytes / 1e9

    fake.predicted = predicted
    monkeypatch.setattr(tune, "run_trial", run_trial)
    return fake


def results(folder) -> list[dict]:
    return json.loads((folder / "tune.json").read_text())["trials"]


def test_the_fastest_trial_is_written_with_the_table(machine, tmp_path, capsys):
    assert main(["plan", *ARGUMENTS, "--tune", "--write", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    trials = results(tmp_path)
    assert len(trials) == 6 == len(set(machine.tried))
    best = max(trials, key=lambda trial: trial["result"]["tokens_per_second"])
    written = (tmp_path / "gpt2_124m.yaml").read_text()
    assert (
        load_recipe(str(tmp_path / "gpt2_124m.yaml")).batch.micro_batch_size
        == best["settings"]["batch.micro_batch_size"]
    )
    for trial in trials:
        assert f"# {trial['words']}: predicted" in written
    assert len(re.findall(r"^trial \d of 6: .* measured [\d,]+ tokens/s \([+-]\d+%\)", text, re.M)) == 6


def test_neighbours_of_the_fastest_are_tried(machine, tmp_path):
    main(["plan", *ARGUMENTS, "--tune", "--trials", "5", "--write", str(tmp_path)])
    leaders, later = machine.tried[:3], machine.tried[3:]
    fastest = max(leaders, key=lambda kind: kind[2])
    assert [kind[2] for kind in later if kind[:2] == fastest[:2]]


def test_what_ran_out_of_memory_is_learnt_from(machine, tmp_path):
    """Nothing that is predicted to need more than what failed is tried again."""
    machine.limit_gb = 8
    assert main(["plan", *ARGUMENTS, "--tune", "--trials", "8", "--write", str(tmp_path)]) == 0
    trials = results(tmp_path)
    smallest = float("inf")
    for trial in trials:
        assert trial["predicted_gb"] < smallest
        if trial["result"]["outcome"] == "out of memory":
            smallest = min(smallest, trial["predicted_gb"])
    assert {trial["result"]["outcome"] for trial in trials} == {"measured", "out of memory"}


def test_a_recipe_that_does_not_train_at_all_is_one_message(machine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "run_trial", lambda *_: Measured("failed", message="error: corpora/none is not there"))
    assert main(["plan", *ARGUMENTS, "--tune", "--write", str(tmp_path)]) == 2
    assert "the first trial, zero1, micro-batch" in (error := capsys.readouterr().err)
    assert error.endswith("failed:\nerror: corpora/none is not there\n") and not (tmp_path / "tune.json").exists()


def test_an_interrupted_tuning_keeps_its_trials_and_goes_on(machine, tmp_path, capsys):
    arguments = ["plan", *ARGUMENTS, "--tune", "--trials", "4", "--write", str(tmp_path)]
    machine.interrupt_at = 2
    assert main(arguments) == 130
    assert len(results(tmp_path)) == 2 and not (tmp_path / "gpt2_124m.yaml").exists()
    machine.interrupt_at = 99
    assert main(arguments) == 0
    assert len(machine.tried) == 4 == len(set(machine.tried)) == len(results(tmp_path))
    assert "trial 2, kept from before" in capsys.readouterr().out
    assert main([*arguments, "optimizer.lr=1e-3", "--force"]) == 2
    assert "has trials of another recipe" in capsys.readouterr().err


def test_trials_of_one_node_stand_for_a_cluster(machine, tmp_path, capsys, monkeypatch):
    """Two GPUs here, sixteen in the plan: micro-batches and accumulation stay, the global batch shrinks."""
    seen = []

    def run_trial(recipe, settings, ds_config, ranks, seconds):
        seen.append((ranks, settings["batch.global_batch_size"] // settings["batch.micro_batch_size"]))
        return Measured("measured", 1000.0, 10.0, 10)

    monkeypatch.setattr(tune, "run_trial", run_trial)
    monkeypatch.setattr(room, "gpus_here", lambda: [find_accelerator("h100-80")] * 2)
    arguments = ["gpt2_124m", "--gpu", "h100-80", "--gpus", "16", "--gpus-per-node", "2", "--trials", "2"]
    assert main(["plan", *arguments, "--tune", "--write", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "trials measure what 2 × h100-80 compute; the network between nodes stays predicted" in text
    words = [trial["words"] for trial in results(tmp_path)]
    assert [(2, 2 * int(word.split("× ")[1].split(",")[0])) for word in words] == seen
    assert "tokens/s measured on 2 × h100-80, which makes" in text


@pytest.mark.slow
def test_real_trials_one_of_them_out_of_memory(corpus, tmp_path):
    """Under a limit of 1.35 GB on each process's data, of which the planner is told otherwise; 512 rows need 1.6 GB."""
    recipe = tmp_path / "rows.yaml"
    recipe.write_text(f"""# Rows that fill memory.
data: {{datasets: [{{path: {corpus}}}], row_length: 64}}
model: {{preset: qwen3, vocab_size: 512, num_layers: 4, hidden_size: 64, num_heads: 4, num_kv_heads: 2, max_positions: 64}}
batch: {{global_batch_size: 512, micro_batch_size: 512}}
optimizer: {{lr: 1e-3}}
schedule: {{steps: 1000}}
engine: {{precision: fp32, compile: off, ds_config: zero0, activation_checkpointing: none}}
monitor: {{peak_tflops: 0.1}}
""")
    kept = ["engine.ds_config=zero0", "engine.activation_checkpointing=none"]
    options = ["--memory", "40", "--tune", "--trials", "2", "--seconds", "0.5", "--write", str(tmp_path / "tuned")]
    plan = [sys.executable, "-m", "launch", "plan", str(recipe), *kept, *options]
    limited = ["bash", "-c", 'ulimit -d 1350000; exec "$@"', "limited", *plan]
    result = subprocess.run(limited, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    failed, measured = (trial["result"] for trial in results(tmp_path / "tuned"))
    assert (failed["outcome"], measured["outcome"]) == ("out of memory", "measured")
    assert "rank 0 ran out of memory" in failed["message"]
    assert measured["steps"] >= 3 and 0.5 < measured["memory_gb"] < 1.35 and measured["tokens_per_second"] > 100
    assert load_recipe(str(tmp_path / "tuned/rows.yaml")).batch.micro_batch_size == 256
    assert not (ROOT / "runs/rows").exists()
