"""tasks/metrics against examples that the libraries publish, against other libraries, and against closed forms."""

import math

import numpy as np
import pytest

from config import DataError
from tasks import metrics


def test_classes_as_in_scikit_learns_documentation():
    """User guide, `classification_report` and `confusion_matrix`."""
    true, predicted = [0, 1, 2, 2, 2], [0, 0, 2, 2, 1]
    report = metrics.class_report(true, predicted, ["class 0", "class 1", "class 2"])
    rounded = {name: [round(value, 2) for value in row.values()] for name, row in report.items()}
    assert rounded == {"class 0": [0.5, 1, 0.67, 1], "class 1": [0, 0, 0, 1], "class 2": [1, 0.67, 0.8, 3]}
    values = metrics.classification(true, predicted)
    expected = {"accuracy": 0.6, "precision_macro": 0.5, "recall_macro": 0.56, "f1_macro": 0.49, "f1_weighted": 0.61}
    assert {name: round(values[name], 2) for name in expected} == expected
    assert values["balanced_accuracy"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert metrics.classification([1, 1], [1, 1])["matthews"] == 0.0
    table = metrics.confusion([2, 0, 2, 2, 0, 1], [0, 0, 2, 2, 0, 2], 3)
    assert table.tolist() == [[2, 0, 0], [0, 0, 1], [1, 0, 2]]


def test_pairs_as_in_scikit_learns_documentation():
    values = metrics.binary([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert values["average_precision"] == pytest.approx(0.8333, abs=1e-4) and values["roc_auc"] == 0.75
    assert values["best_accuracy"] == 0.75 and values["best_f1"] == pytest.approx(0.8)
    assert metrics.binary([1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4])["best_accuracy"] == 0.75  # calling none alike
    with pytest.raises(DataError, match=r"labels \[1\], but pairs need both 0"):
        metrics.binary([1, 1], [0.1, 0.2])


def test_entities_as_in_seqevals_readme():
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    values = metrics.sequence(true, predicted)
    assert values["f1"] == 0.5 and values["tag_accuracy"] == 0.8
    assert metrics.entity_report(true, predicted) == {
        "MISC": {"precision": 0, "recall": 0, "f1": 0, "examples": 1},
        "PER": {"precision": 1, "recall": 1, "f1": 1, "examples": 1},
    }
    # What only strict IOB2 says: an entity that begins with I- is none.
    assert metrics.sequence([["B-NP", "I-NP", "O"]], [["I-NP", "I-NP", "O"]])["f1"] == 0
    none = metrics.sequence([["O", "O"]], [["O", "O"]])
    assert none == {"precision": 0, "recall": 0, "f1": 0, "f1_macro": 0, "tag_accuracy": 1}


def test_text_as_in_sacrebleus_readme():
    from sacrebleu.metrics import BLEU

    references = [
        ["The dog bit the man.", "The dog had bit the man."],
        ["It was not unexpected.", "No one was surprised."],
        ["The man bit him first.", "The man had bitten the dog."],
    ]
    written = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    values = metrics.generation(references, written)
    assert values["bleu"] == pytest.approx(48.530827009929865)
    assert values["chrf"] == pytest.approx(59.73, abs=5e-3)
    assert values["exact_match"] == pytest.approx(1 / 3)
    theirs = BLEU()
    theirs.corpus_score(written, [list(column) for column in zip(*references, strict=True)])
    assert metrics.signatures(references)["bleu"] == str(theirs.get_signature())
    assert metrics.signatures(references)["bleu"].startswith("nrefs:2|case:mixed|eff:no|tok:13a")
    assert metrics.generation(["the same text here"], ["the same text here"])["bleu"] == pytest.approx(100)
    ragged = metrics.generation([["one two three four", "four five"], ["five six seven eight"]], written[:2])
    assert 0 <= ragged["bleu"] < 1


def test_correlations_and_errors_in_closed_form():
    true, predicted = [1.0, 2.0, 3.0, 4.0], [1.0, 4.0, 9.0, 16.0]
    values = metrics.regression(true, predicted)
    assert values["spearman"] == pytest.approx(1)
    assert values["pearson"] == pytest.approx(25 / math.sqrt(5 * 129))
    assert values["mse"] == (0 + 4 + 36 + 144) / 4 and values["mae"] == (0 + 2 + 6 + 12) / 4
    assert math.isnan(metrics.regression(true, [2.0] * 4)["spearman"])
    with pytest.raises(DataError, match="all 2 true values are 3"):
        metrics.regression([3, 3], [1, 2])


def test_ranking_as_in_the_textbook_example():
    """Grades 3 2 3 0 1 2 in this order, with a 3 and a 2 not found: Wikipedia, Discounted cumulative gain."""
    grades = dict(zip("abcdef", [3, 2, 3, 0, 1, 2], strict=True)) | {"g": 3, "h": 2}
    values = metrics.retrieval({"q": grades, "nothing relevant": {"a": 0}}, {"q": list("abcdef")}, depths=(1, 6))
    assert values["ndcg@6"] == pytest.approx(0.785, abs=5e-4)
    assert values["recall@6"] == pytest.approx(5 / 7) and values["recall@1"] == pytest.approx(1 / 7)
    assert values["mrr@6"] == 1


def test_rankings_as_trec_eval_and_scikit_learn_grade_them():
    from sklearn.metrics import ndcg_score

    pytrec_eval = pytest.importorskip("pytrec_eval")
    draw = np.random.default_rng(0)
    scores_QK, grade_QK = draw.random((20, 50)), draw.integers(0, 3, (20, 50)) * (draw.random((20, 50)) < 0.2)
    relevance = {f"q{q}": {f"d{k}": int(grade) for k, grade in enumerate(row)} for q, row in enumerate(grade_QK)}
    run = {f"q{q}": {f"d{k}": float(score) for k, score in enumerate(row)} for q, row in enumerate(scores_QK)}
    rankings = {query: sorted(found, key=found.get, reverse=True) for query, found in run.items()}
    ours = metrics.retrieval(relevance, rankings, depths=(5, 10))
    theirs = pytrec_eval.RelevanceEvaluator(relevance, {"ndcg_cut.5,10", "recall.5,10"}).evaluate(run)
    for name in ("ndcg_cut_5", "ndcg_cut_10", "recall_5", "recall_10"):
        expected = np.mean([row[name] for row in theirs.values()])
        assert ours[name.replace("_cut", "").replace("_", "@")] == pytest.approx(expected, abs=1e-12), name
    assert ours["ndcg@10"] == pytest.approx(ndcg_score(grade_QK, scores_QK, k=10), abs=1e-12)


def test_calibration_in_closed_form():
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.45, 0.55]])
    true = [0, 1, 1, 1]
    values = metrics.calibration(true, probability)
    assert values["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.8) + abs(1 - 0.55)) / 4)
    assert values["brier"] == pytest.approx((0.02 + 1.62 + 0.08 + 2 * 0.45**2) / 4)
    assert values["nll"] == pytest.approx(-np.log([0.9, 0.1, 0.8, 0.55]).mean())
    bins = metrics.reliability(true, probability)
    assert [(row.examples, row.accuracy) for row in bins if row.examples] == [(1, 1.0), (1, 1.0), (2, 0.5)]
    edges = np.arange(1, 10) / 10  # 0.7 * 10 is more than 7
    rows = np.stack([edges, 1 - edges], 1)
    assert [row.examples for row in metrics.reliability([0] * 9, rows)] == [0, 0, 0, 0, 1, 2, 2, 2, 2, 0]
    with pytest.raises(DataError, match=r"example 1 .* add up to 1\.2000"):
        metrics.calibration([0, 1], [[0.5, 0.5], [0.6, 0.6]])
    with pytest.raises(DataError, match="class 2 has no probability: there are 2"):
        metrics.calibration([0, 2], [[0.5, 0.5], [0.6, 0.4]])


@pytest.mark.parametrize("seed", range(3))
def test_random_classes_as_in_scikit_learns_report(seed):
    from sklearn.metrics import classification_report, log_loss

    draw, names = np.random.default_rng(seed), ["a", "b", "rare", "never"]
    true = draw.choice(4, 200, p=[0.5, 0.45, 0.05, 0])
    probability = draw.dirichlet([0.3] * 4, 200)
    predicted = probability.argmax(1)
    theirs = classification_report(
        true, predicted, labels=range(4), target_names=names, output_dict=True, zero_division=0
    )
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score", "examples": "support"}
    for name, row in metrics.class_report(true, predicted, names).items():
        assert row == pytest.approx({ours: theirs[name][key] for ours, key in keys.items()})
    theirs = classification_report(true, predicted, output_dict=True, zero_division=0)
    values = metrics.classification(true, predicted)
    assert values["accuracy"] == pytest.approx(theirs["accuracy"])
    for average in ("macro", "weighted"):
        for ours in ("precision", "recall", "f1"):
            assert values[f"{ours}_{average}"] == pytest.approx(theirs[f"{average} avg"][keys[ours]])
    assert metrics.calibration(true, probability)["nll"] == pytest.approx(log_loss(true, probability, labels=range(4)))


@pytest.mark.parametrize("seed", range(3))
def test_what_validation_says_is_what_the_report_says(seed):
    """engine/scores.py counts by itself, without scikit-learn, seqeval and scipy."""
    from config.supervised_schema import Classification, Regression, TokenClassification
    from engine.scores import score

    draw, tags = np.random.default_rng(seed), ("O", "B-X", "I-X", "B-Y", "I-Y", "I-Z")
    pair = draw.integers(0, 3, (2, 50))
    found, values = score(Classification(labels=("a", "b", "c")), [pair]), metrics.classification(pair[1], pair[0])
    assert found == pytest.approx({"accuracy": values["accuracy"], "f1": values["f1_macro"]})
    rows = [draw.integers(0, 6, (2, length)) for length in draw.integers(1, 12, 40)]
    found = score(TokenClassification(labels=tags), rows)
    predicted, true = ([[tags[number] for number in row[side]] for row in rows] for side in (0, 1))
    values = metrics.sequence(true, predicted)
    assert 0 < values["f1"] < 1
    assert found == pytest.approx({"accuracy": values["tag_accuracy"], "f1": values["f1"]})
    assert score(TokenClassification(labels=tags), [np.zeros((2, 5), int)])["f1"] == 0.0
    pair = draw.integers(0, 9, (2, 60)).astype(float)  # with ties
    values = metrics.regression(pair[1], pair[0])
    assert score(Regression(), [pair]) == pytest.approx({name: values[name] for name in ("pearson", "spearman")})


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary():
    values = metrics.likelihood(10 * math.log(256), tokens=10, text_bytes=10)
    assert values["perplexity"] == pytest.approx(256) and values["bits_per_byte"] == pytest.approx(8)
    assert metrics.likelihood(10 * math.log(256), tokens=10, text_bytes=40)["bits_per_byte"] == pytest.approx(2)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: metrics.classification([1, 0], [1]), "2 true values, but 1 predictions"),
        (lambda: metrics.classification([], []), "nothing to measure"),
        (lambda: metrics.sequence([["O", "O"]], [["O"]]), r"sentence 0 .* 2 true tags, but 1 predicted"),
        (lambda: metrics.sequence([["O"]], [["PER"]]), "tag 'PER': use O, B-TYPE or I-TYPE"),
        (lambda: metrics.generation(["a"], []), "1 true values, but 0 predictions"),
        (lambda: metrics.regression([1, 2], [1, math.nan]), r"prediction 1 .* is nan, not a finite number"),
        (lambda: metrics.retrieval({"q": {"d": 1}}, {}), "1 of 1 queries were not ranked, the first is 'q'"),
        (lambda: metrics.retrieval({"q": {"d": 0}}, {}), "none of 1 queries has a relevant document"),
        (lambda: metrics.likelihood(0.0, 0, 0), "no text to predict"),
        (lambda: metrics.likelihood(math.nan, 5, 5), "the loss of 5 tokens is nan: the model's weights are not all"),
    ],
)
def test_what_cannot_be_measured_is_said(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
