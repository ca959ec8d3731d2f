"""The doctor on disks. A full one is a real small tmpfs where root may mount it, else told by a false statvfs."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.doctor import across, filesystem, labelled
from launch.doctor.filesystem import Letters
from launch.doctor.recipe import read_recipe

MB = 10**6


def two_ranks(first: Path, second: Path) -> tuple[Letters, Letters]:
    pair = Letters(first, 0), Letters(second, 1)
    for letters in pair:
        letters.write("1234")
    return pair


def test_a_folder_that_two_hosts_share(tmp_path):
    pair = two_ranks(tmp_path / "runs/new", tmp_path / "runs/new")  # not made yet: its parent is looked at
    for letters, other in zip(pair, (1, 0), strict=True):
        missing, waited = letters.wait_for([other], 1.0)
        check = filesystem.judge_letters(letters, missing, waited, ["n0", "n1"], 2)
        assert check.status == "ok" and str(tmp_path) in check.found
    for letters in pair:
        letters.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_each_host_has_for_itself(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    here, _ = two_ranks(tmp_path / "a", tmp_path / "b")
    missing, waited = here.wait_for([1, 2], 0.1)
    assert missing == [1, 2]
    check = filesystem.judge_letters(here, missing, waited, ["n0", "n1", "n2"], 3)
    assert check.status == "fail" and "what any other host wrote did not appear" in check.found
    check = filesystem.judge_letters(here, [2], waited, ["n0", "n1", "n2"], 3)
    assert "what n2 wrote did not appear" in check.found


def test_files_of_an_earlier_examination_do_not_count(tmp_path):
    here, there = two_ranks(tmp_path, tmp_path)
    there.remove()
    there.write("an older one")
    assert here.wait_for([1], 0.1)[0] == [1]


def test_slow_appearance_is_a_warning(tmp_path):
    here, _ = two_ranks(tmp_path, tmp_path)
    assert filesystem.judge_letters(here, [], 4.0, ["n0", "n1"], 2).status == "warn"


def test_disk_speed_leaves_nothing_behind(tmp_path):
    here = Letters(tmp_path, 0)
    check = here.speed(checkpoint_bytes=10**13)
    assert check.name == "disk speed" and "a checkpoint of 10,000.00 GB written by one host takes" in check.found
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_room_for_checkpoints(small_disk):
    def status(checkpoint: int) -> str:
        return filesystem.run_folder(small_disk / "runs/mine", checkpoint, keep=3).status

    assert [status(size) for size in (4 * MB, 10 * MB, 30 * MB)] == ["ok", "warn", "fail"]
    (small_disk / "old").write_bytes(bytes(18 * MB))
    assert status(4 * MB) == "fail"


def test_a_disk_that_is_full_while_its_speed_is_measured(small_disk):
    with pytest.raises(OSError, match="No space left"):
        Letters(small_disk, 0).speed(0)
    assert list(small_disk.iterdir()) == []


def test_a_full_disk_is_found_and_stops_no_examination(small_disk):
    with suppress(OSError), open(small_disk / "old", "wb") as file:
        file.write(bytes(30 * MB))
    here = Letters(small_disk / "runs", 0)
    here.write("1234")
    here.remove()
    assert filesystem.run_folder(small_disk / "runs", 4 * MB, keep=3).status == "fail"
    assert [path.name for path in small_disk.iterdir()] == ["old"]


def disk(free: float, files: int = 10**6):
    return lambda folder: SimpleNamespace(f_bavail=free, f_frsize=1, f_files=10**7, f_favail=files)


def test_a_disk_without_inodes_or_a_full_cache(tmp_path):
    assert filesystem.run_folder(tmp_path, MB, 3, disk(1e12)).status == "ok"
    check = filesystem.run_folder(tmp_path, MB, 3, disk(1e12, files=10))
    assert check.status == "fail" and "10 more files" in check.found
    assert filesystem.caches({"HOME": str(tmp_path)}, disk(1e12)).status == "ok"
    check = filesystem.caches({"HF_HOME": "/big/hf"}, disk(1e8))
    assert check.status == "warn" and "HF_HOME (/big/hf) 0.1 GB free" in check.found


def test_a_folder_without_the_right_to_write(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    check = filesystem.run_folder(tmp_path / "runs", 0, 3)
    assert check.status == "fail" and f"no right to write in {tmp_path}" in check.found


def test_datasets(tmp_path):
    assert filesystem.dataset(tmp_path / "none").status == "fail"
    check = filesystem.dataset(tmp_path)
    assert check.status == "fail" and "has no manifest.json" in check.found
    (tmp_path / "manifest.json").write_text("{}")
    first = filesystem.dataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{ }")
    assert first.status == "ok" and filesystem.dataset(tmp_path).found != first.found


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", '\n{"text": "a", "label": "x"}\n', ""),
        ("a.jsonl", '{"text": "a",\n', "its first line is not JSON"),
        ("a.jsonl", '["a", "x"]\n', "no object with fields"),
        ("a.csv", "\ufefftext,label\na,x\n", ""),
        ("a.csv", "text;label\na;x\n", "its header has one column, 'text;label'"),
        ("a.conll", "-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\n", ""),
        ("a.txt", "just text.\n", ""),
        ("a.txt", "text\n", "no tag after the word"),
        ("a.parquet", "text", "is no Parquet file"),
        ("a.tsv", "\n", "holds nothing"),
    ],
)
def test_examples_are_there_and_their_first_record_is_read(tmp_path, name, content, problem):
    missing = labelled.labelled(tmp_path / name)
    assert missing.status == "fail" and "is not there" in missing.found and "all nodes mount" in missing.fix
    (tmp_path / name).write_text(content)
    check = labelled.labelled(tmp_path / name)
    assert (check.status, problem in check.found) == ("fail" if problem else "ok", True), check


def test_hosts_whose_examples_differ_are_told_apart(tmp_path):
    checks = []
    for host, text in (("n1", "a,x"), ("n2", "a,y")):
        (tmp_path / "train.csv").write_text(f"text,label\n{text}\n")
        checks.append((host, labelled.labelled(tmp_path / "train.csv")))
    (told,) = across.same_data(checks)
    assert told.status == "fail" and " on n1, " in told.found and told.found.startswith("content ")
    assert across.same_data([checks[0], ("n2", checks[0][1])]) == []


def test_the_folder_that_a_run_starts_from(tmp_path):
    assert labelled.source(tmp_path / "none").status == labelled.source(tmp_path).status == "fail"
    (tmp_path / "config.json").write_text("{}")
    assert labelled.source(tmp_path).status == "ok"


def test_a_recipe_says_which_examples_and_which_model_to_look_for(tmp_path):
    (tmp_path / "r.yaml").write_text(f"""
run: {{folder: {tmp_path}/runs, start_from: {tmp_path}/model}}
data: {{examples: {{train: {tmp_path}/t.csv, valid: {tmp_path}/v.csv}}, row_length: 48}}
model: {{family: bert, vocab_size: 640, num_layers: 2, hidden_size: 32, num_heads: 4, max_positions: 64}}
objective: {{name: classification, labels: [x, y]}}
batch: {{global_batch_size: 16, micro_batch_size: 16}}
optimizer: {{lr: 5e-3}}
schedule: {{steps: 20, warmup_steps: 4}}
""")
    needs = read_recipe(str(tmp_path / "r.yaml"), [], 1)
    assert needs.labelled == (tmp_path / "t.csv", tmp_path / "v.csv") and needs.start_from == tmp_path / "model"
