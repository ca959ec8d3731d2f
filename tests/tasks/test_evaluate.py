"""`python -m tasks evaluate`: the table, the JSON file and the page."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tasks.__main__ import main
from tasks.evaluate import PAGE
from tasks.evaluation.result import Result, as_table
from tasks.pages import Axis, Curve, render
from tests.conftest import ROOT, environment
from tests.model.tiny import tiny_config
from tests.tasks.trained import save_folder, tiny_trained

VOID = {"meta", "link", "br"}


class Structure(HTMLParser):
    """Counts elements, and fails where one is not closed in its order or something outside is asked for."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        assert tag not in ("script", "img", "iframe")
        assert not any(
            name == "src" or (name == "href" and not value.startswith(("#", "data:"))) for name, value in attrs
        )
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def files(tmp_path) -> Path:
    """A tiny exported decoder, a text, sentence pairs and labelled texts."""
    save_folder(tiny_trained(tiny_config("llama", vocab_size=320)), tmp_path / "model")
    (tmp_path / "text.txt").write_text("A text of which every byte is predicted. " * 4)
    scored = [{"sentence1": "a" * n, "sentence2": "b" * (9 - n), "score": n} for n in range(1, 9)]
    labelled = [{"text": f"{n} {'good' if n % 2 else 'bad'}", "label": ["<no>", "yes"][n % 2]} for n in range(12)]
    for name, rows in (("sts", scored), ("labelled", labelled)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def evaluate(files: Path, *arguments: str) -> int:
    return main(["evaluate", str(files / "model"), *arguments])


def test_a_table_a_json_file_and_a_page(files, capsys):
    labelled = str(files / "labelled.jsonl")
    arguments = ["--text", str(files / "text.txt"), "--sts", str(files / "sts.jsonl"), "--classify", labelled, labelled]
    assert evaluate(files, *arguments, "--window", "32", "--stride", "16", "--out", str(files / "out")) == 0
    table = capsys.readouterr().out
    found = json.loads((files / "out/evaluation.json").read_text())
    kinds = ["perplexity", "sts", "linear probe", "5 nearest neighbours"]
    assert found["model"] == str(files / "model") and [result["kind"] for result in found["results"]] == kinds
    perplexity, _, probe, _ = found["results"]
    assert perplexity["settings"] == {"window": 32, "stride": 16}
    assert perplexity["metrics"]["text_bytes"] == (files / "text.txt").stat().st_size
    assert f"bits_per_byte  {perplexity['metrics']['bits_per_byte']:.4f}" in table and "window 32, stride 16" in table
    assert sum(map(sum, probe["confusion"])) == probe["metrics"]["examples"] == 12

    page = (files / "out/evaluation.html").read_text()
    counts = Structure(page).counts
    assert counts["section"] == 4 and counts["svg"] == 3 and page.count('class="confusion"') == 2
    assert "&lt;no&gt;" in page and "<no>" not in page
    assert page.count(f"{perplexity['metrics']['bits_per_byte']:.4f}") == 2


def test_cosines_are_of_vectors_that_the_folder_leaves_long(files, capsys):
    """A sentence-transformers folder without a Normalize module."""
    assert evaluate(files, "--sts", str(files / "sts.jsonl"), "--pooling", "mean") == 0
    expected = capsys.readouterr().out
    (files / "model/1_Pooling").mkdir()
    (files / "model/1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    modules = [{"path": "", "type": "models.Transformer"}, {"path": "1_Pooling", "type": "models.Pooling"}]
    (files / "model/modules.json").write_text(json.dumps(modules))
    assert evaluate(files, "--sts", str(files / "sts.jsonl")) == 0
    assert capsys.readouterr().out == expected


def test_axes_hold_their_points():
    axis = Axis(0, 10, 50, 450)
    assert [(tick.place, tick.text) for tick in axis.ticks()][::5] == [(50, "0"), (450, "10")]
    depth = Axis(1, 1000, 0, 300, log=True)
    assert [(tick.place, tick.text) for tick in depth.ticks()] == [(0, "1"), (100, "10"), (200, "100"), (300, "1,000")]
    flat = Result("k", "s", "m", {"m": 1.0}, curves=[Curve("flat", "x", "y", {"line": [(1, 2.0), (2, 2.0)]})])
    Structure(render(PAGE, model="m", dtype="float32", results=[flat]))


def test_numbers_that_are_not_there_are_shown(tmp_path):
    result = Result("k", "s", "m", {"m": float("nan"), "n": 12345, "big": 1e300})
    assert "nan" in as_table([result]) and "12,345" in as_table([result])
    Structure(render(PAGE, model="m", dtype="float32", results=[result]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate on: give one or more of --text, --dataset"),
        (["--text", "none.txt"], "none.txt: no such file or folder"),
        (["--sts", "none.jsonl"], "none.jsonl: no such file of examples"),
        (["--sts", "x", "--dimensions", "64"], "dimensions 64: the model has 32"),
        (["--sts", "x", "--window", "64"], "--window is for --text, --dataset: give one of them, or leave it out"),
        (["--text", "x", "--mteb-data", "y"], "--mteb-data is for --mteb: give"),
        (["--text", "x", "--out", __file__], "test_evaluate.py cannot be a folder (File exists): give another"),
        (["--text", "x", "--out", f"{__file__}/below"], "below cannot be a folder (Not a directory): give another"),
        (["--sts", "x", "--text-field", "y"], "--text-field is for --text: give"),
        (["--text", "x", "--rows", "8"], "--rows is for --dataset: give"),
        (["--dataset", "x", "--rows", "8"], "--rows 8: a decoder reads all of a dataset; leave it out"),
        (["--harness", "x", "--limit", "0"], "--limit 0: give at least 1"),
    ],
)
def test_mistakes_are_one_message(files, capsys, arguments, message):
    assert evaluate(files, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_family_that_cannot_is_refused(tmp_path, capsys):
    save_folder(tiny_trained(tiny_config("bert", vocab_size=320)), tmp_path / "model")
    assert evaluate(tmp_path, "--harness", "x") == 2
    assert "--harness needs a model of family gpt, but this one is of family bert" in capsys.readouterr().err


def test_a_missing_package_is_named(files, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "tasks.evaluation.harness", raising=False)
    assert evaluate(files, "--harness", "x") == 2
    assert "this needs lm_eval, which is not installed: pip install -e '.[harness]'" in capsys.readouterr().err


def test_help_is_instant(tmp_path):
    code = "import sys; from tasks.__main__ import main\ntry: main(['evaluate', '--help'])\nfinally: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0 and "--retrieval" in result.stdout, result.stderr
