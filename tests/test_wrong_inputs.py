"""Each wrong input gets one clear message and a non-zero exit, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, losses, train


@pytest.fixture
def own_corpus(corpus, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(corpus, tmp_path / "prepared"))


def use(folder: Path) -> str:
    return f"data.datasets=[{{path: {folder}}}]"


def refused(result: subprocess.CompletedProcess, *parts: str, code: int = 2) -> None:
    """One message on stderr with all the parts, the exit code, no traceback."""
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    messages = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, result.stderr
    for part in parts:
        assert part in result.stderr, f"{part!r} is not in: {result.stderr}"


def shard_of(corpus: Path) -> Path:
    name = json.loads((corpus / "manifest.json").read_text())["splits"]["train"][0]["name"]
    return corpus / f"{name}.bin"


def test_a_typo_is_reported_before_torch_is_imported():
    code = "import sys, train; code = train.main(['gpt_debug', 'optimizer.lrr=1']); assert 'torch' not in sys.modules; exit(code)"
    began = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    refused(result, "optimizer.lrr", "did you mean lr?")
    assert time.perf_counter() - began < 5  # 0.3 s on a quiet machine


def test_missing_data(recipe):
    refused(train(recipe, use(Path("corpora/nowhere"))), "corpora/nowhere", "python -m data prepare")


def test_truncated_shard(recipe, own_corpus):
    shard = shard_of(own_corpus)
    size = shard.stat().st_size
    os.truncate(shard, size - 100)
    refused(train(recipe, use(own_corpus)), str(shard), f"{size - 100:,} bytes", f"{size:,}")


def test_tokenizer_larger_than_the_model(recipe):
    refused(train(recipe, "model.vocab_size=300"), "model.vocab_size 300 is smaller than the 353 tokens")


def test_token_beyond_the_vocabulary(recipe, own_corpus):
    shard = shard_of(own_corpus)
    size = shard.stat().st_size
    shard.write_bytes(b"\xff\x7f" * (size // 2))
    refused(train(recipe, use(own_corpus)), str(shard), "token id 32,767", "model.vocab_size is 512")


def test_tokenizer_that_is_not_the_shards(recipe, own_corpus):
    path = own_corpus / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:-1]
    path.write_text(json.dumps(spec))
    refused(train(recipe, use(own_corpus)), "tokenizer.json", "fingerprint")


def test_checkpoint_of_another_model(recipe, tmp_path):
    assert train(recipe, "schedule.steps=4").returncode == 0
    before = losses(tmp_path / "runs/tiny")
    refused(train(recipe, "model.num_layers=3"), "model.num_layers: 2 → 3", "run.name", "run.resume=fresh")
    refused(train(recipe, "optimizer.lr=0.02"), "optimizer.lr: 0.01 → 0.02", "run.accept_changes=true")
    assert losses(tmp_path / "runs/tiny") == before
    accepted = train(recipe, "optimizer.lr=0.02", "run.accept_changes=true")
    assert accepted.returncode == 0 and "continuing with a change: optimizer.lr" in accepted.stdout


def test_checkpoint_trained_on_other_data(recipe, own_corpus, tmp_path):
    assert train(recipe, use(own_corpus), "schedule.steps=4").returncode == 0
    manifest = json.loads((own_corpus / "manifest.json").read_text())
    manifest["splits"]["train"][0]["block_checksums"][0] = "0" * 16
    (own_corpus / "manifest.json").write_text(json.dumps(manifest))
    refused(train(recipe, use(own_corpus)), "content of", "run.accept_changes=true")


def test_world_size_that_does_not_divide_the_batch(recipe):
    result = train(recipe, RANK="0", LOCAL_RANK="0", WORLD_SIZE="3", MASTER_ADDR="127.0.0.1", MASTER_PORT="29712")
    refused(result, "batch.global_batch_size 8", "3 ranks", "set batch.global_batch_size to")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_run_folder_as_a_user(recipe, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(train(recipe, f"run.folder={locked}/runs"), "run.folder", "Permission denied")


def test_unwritable_run_folder(recipe):
    refused(train(recipe, "run.folder=/proc/runs"), "run.folder: cannot write /proc/runs/tiny")


def test_nothing_to_continue(recipe):
    refused(train(recipe, "run.resume=must"), "no intact checkpoint to continue from", "run.resume=fresh")


def test_a_bad_token_that_only_the_second_rank_reads_is_reported_once(recipe, own_corpus):
    """Half of the tokens are damaged, so that one of the ranks meets one first; the other must not hang."""
    shard = shard_of(own_corpus)
    content = shard.read_bytes()
    half = len(content) // 4 * 2
    shard.write_bytes(content[:half] + b"\xff\x7f" * ((len(content) - half) // 2))
    result = train(recipe, use(own_corpus), ranks=2)
    assert result.returncode != 0
    assert "error: " in result.stderr and "token id 32,767" in result.stderr


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(recipe, tmp_path):
    assert train(recipe).returncode == 0
    run = tmp_path / "runs/tiny"
    for state in run.glob("checkpoints/*/state.json"):
        state.write_text("{}")
    before = losses(run)
    refused(train(recipe), "no intact checkpoint to continue from", "run.resume=fresh")
    assert losses(run) == before


def test_starting_over_does_not_touch_a_run_that_is_running(recipe, tmp_path):
    import fcntl

    run = tmp_path / "runs/tiny"
    run.parent.mkdir(parents=True)
    with (tmp_path / "runs/.tiny.lock").open("w") as lock:
        lock.write("4242")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(train(recipe, "run.resume=fresh"), f"{run} is in use by process 4242")
    assert not (tmp_path / "runs/tiny.1").exists()


def test_no_space_for_a_checkpoint(recipe, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        result = train(recipe, f"run.folder={small}")
        refused(result, "a checkpoint needs about", "MB are free", "free some space")
        subprocess.run(["mount", "-o", "remount,size=20m", small], check=True)
        assert train(recipe, f"run.folder={small}").returncode == 0
    finally:
        subprocess.run(["umount", small], check=True)


def test_loss_that_is_not_a_number_stops_the_run_and_keeps_the_checkpoint(recipe, tmp_path):
    assert train(recipe, "schedule.steps=4", "schedule.name=constant").returncode == 0
    result = train(
        recipe, "schedule.name=constant", "optimizer.lr=1e30", "optimizer.grad_clip=0", "run.accept_changes=true"
    )
    refused(result, "at step", "Lower optimizer.lr (now 1e+30)", "first not finite: ", code=3)
    assert [p.name for p in (tmp_path / "runs/tiny/checkpoints").glob("step_*")] == ["step_00000004"]
