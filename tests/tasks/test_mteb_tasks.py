"""MTEB's own tasks on local data: our vectors, and those of sentence-transformers from our export."""

import json

import pytest
import torch

from config import DataError
from tasks.checkpoints import load_model
from tasks.embedding import Embedder
from tasks.evaluation import vectors
from tasks.export.sentence import write_sentence_layout
from tests.model.tiny import tiny_config
from tests.tasks.trained import save_folder, tiny_trained

mteb = pytest.importorskip("mteb")
WORDS = ["the", "model", "reads", "a", "row", "of", "tokens", "and", "falls", "step", "by", "step"]
RETRIEVAL = """---
configs:
- {config_name: corpus, data_files: [{split: test, path: corpus.jsonl}]}
- {config_name: queries, data_files: [{split: test, path: queries.jsonl}]}
- {config_name: default, data_files: [{split: test, path: qrels.jsonl}]}
---
"""


def sentence(*numbers: int) -> str:
    return " ".join(WORDS[number % len(WORDS)] for number in numbers)


def write(path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The data of three tasks, laid out as on the hub; nothing can be fetched."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    pairs = [
        {"sentence1": sentence(n, n + 1), "sentence2": sentence(n + 1, 3 * n), "score": float(n * 7 % 5)}
        for n in range(20)
    ]
    write(tmp_path / "data/STSBenchmark/test.jsonl", pairs)
    labelled = [{"text": sentence(n % 2, n, n + 3), "label": n % 2} for n in range(40)]
    for split, rows in (("train", labelled[:24]), ("test", labelled[24:])):
        write(tmp_path / f"data/Banking77Classification/{split}.jsonl", rows)
    search = tmp_path / "data/SciFact"
    write(
        search / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": sentence(n, n + 2, n * n)} for n in range(12)]
    )
    write(search / "queries.jsonl", [{"_id": f"q{n}", "text": sentence(n, n + 2)} for n in range(6)])
    write(search / "qrels.jsonl", [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(6)])
    (search / "README.md").write_text(RETRIEVAL)
    return tmp_path / "data"


def test_numbers_are_those_of_our_export_in_sentence_transformers(folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    from tasks.evaluation.mteb_tasks import _find, run_tasks

    exported = save_folder(tiny_trained(tiny_config("bert", vocab_size=320)), tmp_path / "hf")
    embedder = Embedder(load_model(exported, torch.device("cpu")), "mean")
    write_sentence_layout(exported, embedder)
    theirs = SentenceTransformer(str(exported), device="cpu", model_kwargs={"dtype": torch.float32})
    names = [path.name for path in folder.iterdir()]
    ours = {result.source: result for result in run_tasks(embedder, names, folder)}
    for name in names:
        found = mteb.evaluate(theirs, _find(name, folder), cache=None, show_progress_bar=False, co2_tracker=False)
        (row,) = found.task_results[0].scores["test"]
        assert ours[name].metrics["main_score"] == pytest.approx(row["main_score"], abs=1e-6), name
        assert ours[name].settings == {"split": "test", "subset": "default"}
    own = vectors.similarity(embedder, str(folder / "STSBenchmark/test.jsonl"))
    sts = ours["STSBenchmark"].metrics
    assert sts["cosine_spearman"] == sts["main_score"] == pytest.approx(own.metrics["spearman_cosine"], abs=1e-6)


def test_a_task_or_data_that_is_not_there_is_named(folder):
    from tasks.evaluation.mteb_tasks import run_tasks

    with pytest.raises(DataError, match="MTEB has no such task"):
        run_tasks(None, ["NoSuchTask"])
    with pytest.raises(DataError, match=r"data/SICK-R: no such folder; download mteb/sickr-sts into it: hf download"):
        run_tasks(None, ["SICK-R"], folder)
    (folder / "STSBenchmark/test.jsonl").rename(folder / "STSBenchmark/train.jsonl")
    with pytest.raises(DataError, match="data of MTEB's STSBenchmark has no 'test': it needs the splits"):
        run_tasks(None, ["STSBenchmark"], folder)
