"""Preparation as a whole: the same files for any number of workers, after any kill, and clear refusals."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import data.finish
import data.workers
from config import DataError
from data.clean import document_hash, is_valid
from data.dataset import load_tokenizer, open_dataset
from data.documents import ReadOptions
from data.finish import first_occurrences
from data.manifest import Manifest
from data.prepare import prepare
from data.resume import PrepareOptions
from data.shard import ShardWriter

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "for",
    "it",
    "as",
    "was",
    "with",
    "be",
    "by",
    "on",
    "not",
    "he",
    "his",
    "but",
    "at",
    "are",
    "this",
    "have",
    "from",
]


def documents(count, seed):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=int(random.integers(5, 200)))) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path):
    """Four files, hence four units, of different documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(4):
        lines = [json.dumps({"text": text}) for text in documents(60, seed=i)]
        (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def run(*sources, out, **options):
    said = []
    arguments = {"tokenizer": "bytes", "split_valid": 0.1} | options
    manifest = prepare(PrepareOptions(tuple(map(str, sources)), out, **arguments), said.append)
    return manifest, "\n".join(said)


def texts(folder, split="train"):
    """The decoded documents of a split."""
    tokenizer = load_tokenizer(folder)
    found = []
    for shard in open_dataset(folder, split).shards:
        for number in range(shard.document_count):
            *ids, last = shard.document(number).tolist()
            assert last == tokenizer.eod_id
            found.append(tokenizer.decode(ids))
    return found


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_in_one_split_in_order(corpus, tmp_path):
    manifest, _ = run(corpus, out=tmp_path / "out")
    given = [text for i in range(4) for text in documents(60, seed=i)]
    held_out = [text for text in given if is_valid(document_hash(text.encode()), 0.1)]
    assert texts(tmp_path / "out", "valid") == held_out
    assert texts(tmp_path / "out") == [text for text in given if text not in held_out]
    assert 5 < len(held_out) < 60
    assert manifest.documents == 240
    assert manifest.text_bytes == sum(map(len, given))
    assert manifest.tokens == sum(map(len, given)) + 240
    assert sorted(manifest.splits) == ["train", "valid"]
    assert not (tmp_path / "out" / ".partial").exists()


def test_the_tail_of_each_document_is_held_out(tmp_path):
    given = ["naïve " * 200 + "tail", "x", "naïve " * 200 + "tail"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    manifest, _ = run(tmp_path / "a.jsonl", out=tmp_path / "out", valid_tail=True)
    cut = int(len(given[0]) * 0.9)
    assert texts(tmp_path / "out") == [given[0][:cut]]
    assert texts(tmp_path / "out", "valid") == [given[0][cut:], "x"]
    assert manifest.dropped == {"duplicate": 2}
    assert manifest.text_bytes == len((given[0] + "x").encode())
    with pytest.raises(DataError, match=r"split_valid last 0\.1 -> 0\.1"):
        run(tmp_path / "a.jsonl", out=tmp_path / "out")


def test_the_files_are_the_same_for_any_number_of_workers(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(data.workers, "WORTH_A_WORKER", 1)
    for workers in (1, 2):
        run(corpus, out=tmp_path / f"{workers}", tokenizer=None, vocab_size=400, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    assert len(list((tmp_path / "1").glob("train-*.bin"))) == 4


def test_a_mistake_found_by_a_worker_process_arrives_whole(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(data.workers, "WORTH_A_WORKER", 1)
    with open(corpus / "2.jsonl", "a") as file:
        file.write("oops\n")
    with pytest.raises(DataError, match=r"2\.jsonl:61: not JSON \(Expecting value at column 1\)"):
        run(corpus, out=tmp_path / "out", workers=2)
    assert not list((tmp_path / "out" / ".partial").glob("*.tmp"))
    manifest, _ = run(corpus, out=tmp_path / "out", read=ReadOptions(skip_bad_lines=True), overwrite=True)
    assert manifest.dropped == {"malformed line": 1}


def test_a_held_out_text_is_held_out_from_every_dataset(corpus, tmp_path):
    run(corpus, out=tmp_path / "all")
    run(corpus / "3.jsonl", out=tmp_path / "one")
    assert set(texts(tmp_path / "one", "valid")) == set(texts(tmp_path / "all", "valid")) & set(documents(60, seed=3))


def test_duplicates_leave_and_the_first_stays(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\none\nthree\n")
    (tmp_path / "b.txt").write_text("two\nfour\r\n")
    (tmp_path / "c.txt").write_text("three\none\n")
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    line = ReadOptions(txt_documents="line")
    manifest, _ = run(*files, out=tmp_path / "out", read=line, split_valid=0.0)
    assert texts(tmp_path / "out") == ["one", "two", "three", "four"]
    assert manifest.dropped == {"duplicate": 4}
    assert (manifest.documents, manifest.text_bytes) == (4, len("onetwothreefour"))
    assert [entry.name for entry in manifest.splits["train"]] == ["train-00000", "train-00001"]
    manifest, _ = run(*files, out=tmp_path / "all", read=line, split_valid=0.0, keep_duplicates=True)
    assert manifest.documents == 8


def test_first_occurrences_in_bounded_memory_is_that_of_a_set(monkeypatch):
    monkeypatch.setattr(data.finish, "HASHES_AT_ONCE", 50)
    random = np.random.default_rng(0)
    hashes = [random.integers(0, 200, size, dtype=np.uint64) for size in (100, 1, 0, 333)]
    hashes[0][0] = 2**64 - 1
    seen: set[int] = set()
    for array, keep in zip(hashes, first_occurrences(hashes), strict=True):
        for hashed, kept in zip(array.tolist(), keep.tolist(), strict=True):
            assert kept == (hashed not in seen)
            seen.add(hashed)


def command(*arguments):
    return [sys.executable, "-m", "data", "prepare", *map(str, arguments), "--tokenizer", "bytes", "--workers", "2"]


@pytest.fixture
def slow_corpus(tmp_path):
    """Twelve units that take two processes a second or two."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(12):
        lines = [json.dumps({"text": text * 30}) for text in documents(30, seed=i)]
        (folder / f"{i:02}.jsonl").write_text("\n".join(lines))
    return folder


def start_and_wait_for_a_unit(corpus, out):
    process = subprocess.Popen(
        command(corpus, "--out", out),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not list((out / ".partial").glob("[0-9]*.json")):
        assert process.poll() is None
        time.sleep(0.005)
    return process


def test_killed_and_run_again_it_goes_on_to_the_same_files(slow_corpus, tmp_path):
    out = tmp_path / "out"
    process = start_and_wait_for_a_unit(slow_corpus, out)
    process.kill()
    process.communicate()  # ends when the workers, which hold the pipe too, are gone
    done = len(list((out / ".partial").glob("[0-9]*.json")))
    assert 0 < done < 12
    _, said = run(slow_corpus, out=out, split_valid=0.005)
    assert f"continuing: {done} of 12 units of work are done" in said
    run(slow_corpus, out=tmp_path / "reference", split_valid=0.005)
    assert content(out) == content(tmp_path / "reference")


def test_ctrl_c_stops_with_one_line_and_loses_nothing(slow_corpus, tmp_path):
    process = start_and_wait_for_a_unit(slow_corpus, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=20)[0].decode()
    assert process.returncode == 130, output
    assert output.endswith("stopped; what is finished is kept: the same command goes on from here\n")
    assert "Traceback" not in output
    assert not list((tmp_path / "out" / ".partial").glob("*.tmp"))
    _, said = run(slow_corpus, out=tmp_path / "out", split_valid=0.005)
    assert "continuing:" in said


def test_ctrl_c_is_the_business_of_the_parent_alone(slow_corpus, tmp_path):
    process = start_and_wait_for_a_unit(slow_corpus, tmp_path / "out")
    workers = psutil.Process(process.pid).children()
    assert len(workers) >= 2
    for worker in workers:
        worker.send_signal(signal.SIGINT)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output


def test_killed_while_finishing_it_finishes(corpus, tmp_path, monkeypatch):
    lines = (corpus / "0.jsonl").read_text().splitlines()
    (corpus / "4.jsonl").write_text("\n".join([*lines[:10], json.dumps({"text": "new"})]))
    run(corpus, out=tmp_path / "reference")
    run(corpus / "0.jsonl", out=tmp_path / "out")
    moved = []

    def replace_twice(source, target):
        if Path(target).parent == tmp_path / "out" and target.suffix == ".bin":
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr("data.finish.os.replace", replace_twice)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, out=tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    assert not (tmp_path / "out" / "manifest.json").exists(), "the old manifest would describe new shards"
    run(corpus, out=tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "reference")


def test_a_finished_dataset_is_left_as_it_is(corpus, tmp_path):
    first, _ = run(corpus, out=tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again, said = run(corpus, out=tmp_path / "out", workers=2)
    assert "already done" in said
    assert again == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_other_arguments_and_changed_sources_are_refused_by_name(corpus, tmp_path):
    out = tmp_path / "out"
    run(corpus, out=out)
    with pytest.raises(DataError, match=r"prepared differently \(split_valid 0\.1 -> 0\.2, normalise nfc -> nfkc\)"):
        run(corpus, out=out, split_valid=0.2, normalise="nfkc")
    with pytest.raises(DataError, match=r"sources .*corpus -> .*0\.jsonl\); choose another --out, or pass --overwrite"):
        run(corpus / "0.jsonl", out=out)
    (corpus / "0.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(DataError, match=r"corpus changed: 4 files of [\d,]+ bytes -> 4 of [\d,]+"):
        run(corpus, out=out)
    manifest, _ = run(corpus / "0.jsonl", out=out, split_valid=0.0, overwrite=True)
    assert texts(out) == ["changed"]
    assert manifest.documents == 1
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "tokenizer.json",
        "train-00000.bin",
        "train-00000.idx",
    }


def test_an_unfinished_preparation_refuses_other_arguments(corpus, tmp_path):
    (corpus / "9.jsonl").write_text("oops\n")
    with pytest.raises(DataError, match="not JSON"):
        run(corpus, out=tmp_path / "out")
    with pytest.raises(
        DataError, match=r"an unfinished preparation with other arguments \(skip_bad_lines False -> True\)"
    ):
        run(corpus, out=tmp_path / "out", read=ReadOptions(skip_bad_lines=True))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("\n \n\n", {}, r"no document was kept of 3 \(empty 3\)"),
        ("one\n", {"split_valid": 0.999999}, "all 1 documents fell into the valid split"),
    ],
)
def test_an_empty_corpus_says_why_and_is_forgotten(tmp_path, text, options, message):
    (tmp_path / "a.txt").write_text(text)
    line = ReadOptions(txt_documents="line")
    with pytest.raises(DataError, match=message):
        run(tmp_path / "a.txt", out=tmp_path / "out", read=line, **options)
    (tmp_path / "a.txt").write_text("now there is text")
    assert run(tmp_path / "a.txt", out=tmp_path / "out", read=line, split_valid=0.0)[0].documents == 1


def test_a_full_disk_is_explained_and_what_is_finished_stays(corpus, tmp_path, monkeypatch):
    whole = ShardWriter.add

    def add(self, ids):
        if self.prefix.name == "train-00002":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, ids)

    monkeypatch.setattr(ShardWriter, "add", add)
    with pytest.raises(
        DataError, match=r"out: the disk is full \([\d.]+ .B free, [\d.]+ .?B written so far.*run the same"
    ):
        run(corpus, out=tmp_path / "out")
    monkeypatch.undo()
    _, said = run(corpus, out=tmp_path / "out")
    assert "continuing: 2 of 4 units" in said


def test_two_preparations_do_not_write_into_one_folder(corpus, tmp_path):
    holder = (
        "import sys; from pathlib import Path; from data.resume import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, tmp_path / "out"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(DataError, match="another process is writing there"):
        run(corpus, out=tmp_path / "out")
    process.communicate()
    run(corpus, out=tmp_path / "out")


def test_an_out_that_cannot_be_written_is_named(corpus, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=f"--out {out}: cannot be written, choose another folder"):
            run(corpus, out=out)


def test_the_manifest_says_where_the_tokens_come_from(corpus, tmp_path):
    run(corpus, out=tmp_path / "out", tokenizer=None, vocab_size=300)
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.vocab_size, manifest.dtype, manifest.eod_id) == (300, "uint16", 299)
    assert manifest.sources[0].files == 4
    assert manifest.settings["tokenizer"] == "trained"
    assert manifest.settings["vocab_size"] == 300
    assert manifest.hash == run(corpus, out=tmp_path / "other", tokenizer=None, vocab_size=300)[0].hash
