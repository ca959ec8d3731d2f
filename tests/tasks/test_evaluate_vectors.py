"""Evaluations of vectors against other libraries, on vectors whose values are known."""

import json
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sentence_transformers import util

from config import DataError
from tasks.evaluation import vectors

DRAW = np.random.default_rng(0)
WORDS = [f"word{number}" for number in range(60)]
TABLE = dict(zip(WORDS, DRAW.standard_normal((60, 8)), strict=True))


def encode(texts: Sequence[str]) -> torch.Tensor:
    """The mean of the vectors of a text's words, normalised."""
    vector_ND = torch.tensor(np.array([sum(TABLE[word] for word in text.split()) for text in texts]))
    return torch.nn.functional.normalize(vector_ND, dim=1).float()


EMBEDDER = SimpleNamespace(encode=encode, tokenize=lambda texts: [text.split() for text in texts], max_tokens=3)


def sentence(*numbers: int) -> str:
    return " ".join(WORDS[number] for number in numbers)


def write(path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_similarity_is_spearmans_of_sentence_transformers_cosines(tmp_path):
    rows = [
        {"sentence1": sentence(n, n + 1), "sentence2": sentence(n + 1, 59 - n), "score": float(DRAW.random())}
        for n in range(20)
    ]
    result = vectors.similarity(EMBEDDER, write(tmp_path / "sts.jsonl", rows))
    cosines = util.pairwise_cos_sim(*(encode([row[name] for row in rows]) for name in ("sentence1", "sentence2")))
    expected = spearmanr([row["score"] for row in rows], cosines).statistic
    assert result.metrics["spearman_cosine"] == pytest.approx(expected, abs=1e-6) and result.metrics["pairs"] == 20
    table = tmp_path / "sts.tsv"
    lines = ["\t".join((row["sentence1"], row["sentence2"], str(row["score"]))) for row in rows]
    table.write_text("\n".join(["sentence1\tsentence2\tscore", *lines]) + "\n")
    assert vectors.similarity(EMBEDDER, str(table)).metrics == result.metrics


def test_pairs_are_told_apart(tmp_path):
    alike = [{"sentence1": sentence(n), "sentence2": sentence(n, n), "label": 1} for n in range(5)]
    others = [{"sentence1": sentence(n), "sentence2": sentence(n + 9), "label": 0} for n in range(5)]
    long = {"sentence1": sentence(1), "sentence2": sentence(1, 1, 1, 1), "label": 1}
    result = vectors.pairs(EMBEDDER, write(tmp_path / "pairs.jsonl", [*alike, *others, long]))
    assert result.settings == {"cut": "1 of 22 texts at 3 tokens"}
    metrics = result.metrics
    assert metrics["average_precision"] == pytest.approx(1) and metrics["best_accuracy"] == 1
    assert metrics["best_f1_threshold"] > 0.99


@pytest.fixture
def beir(tmp_path):
    """40 documents; each query holds words of its relevant documents."""
    corpus = [{"_id": f"d{n}", "title": WORDS[n] if n % 2 else "", "text": sentence(n + 1, n + 2)} for n in range(40)]
    write(tmp_path / "corpus.jsonl", corpus)
    write(tmp_path / "queries.jsonl", [{"_id": f"q{n}", "text": sentence(n + 1, n + 3)} for n in range(12)])
    (tmp_path / "qrels").mkdir()
    lines = [f"q{n}\td{n + step}\t{2 - step}" for n in range(10) for step in (0, 1)]
    (tmp_path / "qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return tmp_path


def test_search_ranks_as_sentence_transformers_and_trec_eval_do(beir):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    result = vectors.search(EMBEDDER, str(beir))
    corpus, queries, relevance = vectors.read_beir(beir, "test")
    assert corpus["d1"] == sentence(1, 2, 3) and corpus["d2"] == sentence(3, 4)
    hits = util.semantic_search(encode([queries[q] for q in relevance]), encode(list(corpus.values())), top_k=40)
    run = {
        query: {list(corpus)[hit["corpus_id"]]: hit["score"] for hit in found}
        for query, found in zip(relevance, hits, strict=True)
    }
    graded = {query: {document: int(grade) for document, grade in row.items()} for query, row in relevance.items()}
    theirs = pytrec_eval.RelevanceEvaluator(graded, {"ndcg_cut.10", "recall.3", "recip_rank"}).evaluate(run)
    for ours, name in (("ndcg@10", "ndcg_cut_10"), ("recall@3", "recall_3"), ("mrr@100", "recip_rank")):
        expected = np.mean([row[name] for row in theirs.values()])
        assert result.metrics[ours] == pytest.approx(expected, abs=1e-6), ours
    assert (result.metrics["queries"], result.metrics["documents"]) == (10, 40)
    assert [x for x, _ in result.curves[0].lines["recall"]] == [1, 3, 5, 10, 100]


def test_classes_are_learned_from_vectors(tmp_path):
    def rows(begin: int, count: int) -> list[dict]:
        return [
            {"text": sentence(20 * (n % 2), 20 * (n % 2) + 1 + begin + n // 2), "label": ["no", "yes"][n % 2]}
            for n in range(count)
        ]

    train, test = write(tmp_path / "train.jsonl", rows(0, 20)), write(tmp_path / "test.jsonl", rows(10, 12))
    probe, near = vectors.classes(EMBEDDER, train, test)
    from sklearn.linear_model import LogisticRegression

    theirs = LogisticRegression(max_iter=1000)
    labels, texts = ([row[name] for row in rows(0, 20)] for name in ("label", "text"))
    theirs.fit(encode(texts), labels)
    expected = theirs.score(encode([row["text"] for row in rows(10, 12)]), [row["label"] for row in rows(10, 12)])
    assert probe.metrics["accuracy"] == pytest.approx(expected) and near.kind == "5 nearest neighbours"
    assert list(probe.report) == ["no", "yes"] and sum(map(sum, probe.confusion)) == 12
    assert sum(row["examples"] for row in probe.reliability) == 12 and 0 <= probe.metrics["ece"] <= 1


def test_each_wrong_file_is_named(beir, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": WORDS[0], "label": "a"}, {"text": WORDS[1], "label": "b"}])
    test = write(tmp_path / "test.jsonl", [{"text": WORDS[0], "label": "a"}, {"text": WORDS[1], "label": "c"}])
    one = write(tmp_path / "one.jsonl", [{"text": WORDS[0], "label": "a"}])
    empty = write(tmp_path / "empty.jsonl", [])
    words = write(tmp_path / "words.jsonl", [{"sentence1": "a", "sentence2": "b", "score": "high"}])
    tokens = write(tmp_path / "tokens.jsonl", [{"text": [WORDS[0]], "label": "a"}])
    pair = {"sentence1": WORDS[0], "sentence2": WORDS[1]}
    equal = write(tmp_path / "equal.jsonl", [pair | {"score": 3}] * 2)
    alike = write(tmp_path / "alike.jsonl", [pair | {"label": 1}] * 2)
    shares = write(tmp_path / "shares.jsonl", [pair | {"label": 0.7}])
    listed = write(tmp_path / "listed.jsonl", [pair | {"score": [1]}])
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("sentence1,sentence2,score\na,b\n")
    cases = [
        (
            lambda: vectors.classes(EMBEDDER, train, test),
            r"test\.jsonl:2: label 'c' is not among the 2 of .*train\.jsonl",
        ),
        (lambda: vectors.classes(EMBEDDER, one, test), "all 1 labels are 'a': there is nothing to tell apart"),
        (lambda: vectors.similarity(EMBEDDER, empty), r"empty\.jsonl: holds no example"),
        (lambda: vectors.similarity(EMBEDDER, train), r"train\.jsonl:1: no field 'sentence1'; there are text, label"),
        (lambda: vectors.similarity(EMBEDDER, words), r"words\.jsonl:1: score is 'high', not a number"),
        (lambda: vectors.classes(EMBEDDER, tokens, test), r"tokens\.jsonl:1: text is \['word0'\], not a text"),
        (lambda: vectors.pairs(EMBEDDER, shares), r"shares\.jsonl:1: label is 0\.7, not a whole number"),
        (lambda: vectors.similarity(EMBEDDER, listed), r"listed\.jsonl:1: score is \[1\], not a number"),
        (lambda: vectors.similarity(EMBEDDER, str(ragged)), r"ragged\.csv:2: 2 columns, but the header has 3"),
        (lambda: vectors.similarity(EMBEDDER, equal), r"equal\.jsonl: all 2 true values are 3: a correlation needs"),
        (lambda: vectors.pairs(EMBEDDER, alike), r"alike\.jsonl: labels \[1\], but pairs need both 0"),
        (lambda: vectors.search(EMBEDDER, str(tmp_path / "none")), r"corpus\.jsonl: no such file"),
    ]
    for measure, message in cases:
        with pytest.raises(DataError, match=message):
            measure()
    with (beir / "qrels/test.tsv").open("a") as file:
        file.write("q1\td99\t1\n")
    with pytest.raises(DataError, match=r"test\.tsv:22: document 'd99' is not among the 40"):
        vectors.search(EMBEDDER, str(beir))
