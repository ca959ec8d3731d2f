"""`python -m data` as a user meets it: exit codes, messages and what inspect shows."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.__main__ import main
from data.dataset import open_dataset
from data.progress import in_bytes
from data.report import histogram

ROOT = Path(__file__).parents[2]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"text": f"Sentence number {i}.\n" * (i + 1)} for i in range(30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def prepared(corpus, *more):
    out = corpus.parent / "out"
    arguments = ["prepare", str(corpus), "--out", str(out), "--vocab-size", "280", "--split-valid", "0.2", *more]
    return main(arguments), out


def test_prepare_inspect_verify(corpus, capsys):
    code, out = prepared(corpus)
    said = capsys.readouterr().out
    assert code == 0
    assert "encoder: tiktoken (same merges" in said
    assert f"next: python -m data inspect {out}" in said
    text_bytes = sum(len(json.loads(line)["text"]) for line in corpus.read_text().splitlines())
    assert main(["inspect", str(out), "--documents", "2"]) == 0
    shown = capsys.readouterr().out
    assert f"30 documents, {in_bytes(text_bytes)} of text" in shown
    assert "280 tokens, end of document '<|endoftext|>' = 279" in shown
    assert shown.count("  | Sentence number") >= 2
    assert shown.count("first tokens: ") == 2
    assert main(["verify", str(out)]) == 0
    assert capsys.readouterr().out.startswith("intact: 2 shards")


def test_the_tail_of_a_text_file_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 10)
    arguments = ["prepare", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert main([*arguments, "--split-valid-tail", "0.25"]) == 0
    splits = {split: open_dataset(tmp_path / "out", split).shards[0].tokens for split in ("train", "valid")}
    assert bytes(splits["train"][:-1].tolist()) == (b"0123456789" * 10)[:75]
    assert bytes(splits["valid"][:-1].tolist()) == (b"0123456789" * 10)[75:]


def test_verify_exits_with_1_for_damage_and_2_for_what_may_not_be_read(corpus, capsys, monkeypatch):
    _, out = prepared(corpus)
    path = out / "train-00000.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr()
    assert "train-00000.bin: block 0 (bytes 0 to " in said.err
    assert "problems: 2 shards" in said.out

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert main(["verify", str(out)]) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text-field", "body"], "no field 'body'; there are 'text'"),
        (["--vocab-size", "100"], "--vocab-size 100: at least 257 are needed"),
    ],
)
def test_wrong_inputs_exit_with_2_and_one_line(corpus, capsys, more, message):
    code, _ = prepared(corpus, *more)
    said = capsys.readouterr().err
    assert code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "none.txt", "--out", "out"], "none.txt: no such file or folder"),
        (["prepare", "stdlib", "--out", "out", "--tokenizer", "none"], "--tokenizer none: no such file"),
        (["inspect", "none"], "none: no such folder; make it with"),
        (["verify", "none"], "none: no such folder; make it with"),
    ],
)
def test_missing_things_exit_with_2_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "more", [["--split-valid", "1"], ["--split-valid", "x"], ["--workers", "0"], ["--sample-mb", "-1"], ["--nonsense"]]
)
def test_malformed_arguments_are_named_by_the_parser(corpus, capsys, more):
    with pytest.raises(SystemExit) as exit_:
        prepared(corpus, *more)
    assert exit_.value.code == 2
    assert more[0] in capsys.readouterr().err


def test_help_is_quick_and_the_room_never_imports_torch():
    heavy = "{'torch', 'datasets', 'pyarrow', 'tiktoken', 'transformers'}"
    code = (
        "import sys; from data.__main__ import main\n"
        "try: main(['prepare', '--help'])\n"
        f"except SystemExit: sys.exit(repr(sorted({heavy} & sys.modules.keys())))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stderr.strip() == "[]"
    assert "--skip-bad-lines" in result.stdout


def test_the_histogram_counts_every_document_once():
    lengths = np.array([1, 2, 3, 4, 7, 8, 1000, 2**31 - 1])
    lines = histogram(lengths, np.ones(8, np.int64)).splitlines()
    rows = {line.split("█")[0].split(" of tokens")[0].strip(): line for line in lines[:-1]}
    counts = [int(line.split()[3].replace(",", "")) for line in rows.values()]
    assert sum(counts) == len(lengths)
    assert counts[:4] == [1, 2, 2, 1]
    assert lines[-1].endswith("median 5, mean 268,435,584, longest 2,147,483,647")
    for documents in ([3, 1, 1], [1, 1, 4], [2, 1, 3]):
        each = np.repeat([2, 5, 9], documents)
        expected = f"median {int(np.median(each))}, mean {each.mean():,.0f}, longest 9"
        assert histogram(np.array([2, 5, 9]), np.array(documents)).endswith(expected)
