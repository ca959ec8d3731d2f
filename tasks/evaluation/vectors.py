"""What the vectors of texts are good for: similarity, pairs, search and classification, all from local files.

Letters: N texts, Q queries, C classes, D width, K places of a ranking.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config import DataError
from data.example_files import read_records
from tasks import metrics
from tasks.embedding import Embedder
from tasks.evaluation.result import Result, about
from tasks.pages import Curve

Vectors = NDArray[np.float32]
"""[N, D], each of length 1."""
QUERIES_AT_ONCE = 256
NEIGHBOURS = 5


def similarity(embedder: Embedder, path: str) -> Result:
    """Correlation of the cosines of pairs of sentences with people's scores: Spearman's is the one that counts (SemEval's
    STS tasks; Reimers and Gurevych 2019, arXiv:1908.10084, section 4.1)."""
    first, second, scores = _columns(path, ("sentence1", "sentence2", "score"), (str, str, float))
    with about(path):
        values = metrics.regression(scores, _cosines(embedder, first, second))
    named = {f"{name}_cosine": values[name] for name in ("spearman", "pearson")}
    return Result("sts", path, "spearman_cosine", {**named, "pairs": len(scores)}, _cuts(embedder, [*first, *second]))


def pairs(embedder: Embedder, path: str) -> Result:
    """How well the cosine tells pairs that are alike (label 1) from others (0); average precision is what counts, as in
    MTEB (arXiv:2210.07316)."""
    first, second, labels = _columns(path, ("sentence1", "sentence2", "label"), (str, str, int))
    with about(path):
        values = metrics.binary(np.array(labels), _cosines(embedder, first, second))
    settings = _cuts(embedder, [*first, *second])
    return Result("pairs", path, "average_precision", {**values, "pairs": len(labels)}, settings)


def search(embedder: Embedder, folder: str, split: str = "test") -> Result:
    """Documents found for queries by their cosines, in BEIR's layout (arXiv:2104.08663): corpus.jsonl (_id, title, text),
    queries.jsonl (_id, text) and qrels/test.tsv (query-id, corpus-id, score). nDCG@10 is what counts."""
    corpus, queries, relevance = read_beir(Path(folder), split)
    document_ids, query_ids = list(corpus), list(relevance)
    document_ND = _encode(embedder, list(corpus.values()))
    query_QD = _encode(embedder, [queries[query] for query in query_ids])
    rankings: dict[str, list[str]] = {}
    deepest = min(max(metrics.DEPTHS), len(corpus))
    for first in range(0, len(query_ids), QUERIES_AT_ONCE):
        cosine_QN = query_QD[first : first + QUERIES_AT_ONCE] @ document_ND.T
        best_QK = np.argsort(-cosine_QN, axis=1, kind="stable")[:, :deepest]
        for query, best_K in zip(query_ids[first:], best_QK.tolist(), strict=False):
            rankings[query] = [document_ids[number] for number in best_K]
    with about(folder):
        values = metrics.retrieval(relevance, rankings)
    lines = {name: [(float(k), values[f"{name}@{k}"]) for k in metrics.DEPTHS] for name in ("recall", "ndcg")}
    curve = Curve("By depth", "documents looked at", "mean over queries", lines)
    counts = {"queries": len(relevance), "documents": len(corpus)}
    settings = {"split": split} | _cuts(embedder, [*corpus.values(), *queries.values()])
    return Result("retrieval", folder, "ndcg@10", {**values, **counts}, settings, curves=[curve])


def classes(embedder: Embedder, train: str, test: str) -> list[Result]:
    """Labels of test texts from the vectors of training texts: by logistic regression on frozen vectors (a linear probe,
    as MTEB classifies) and by the majority of the nearest neighbours."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    train_texts, train_labels = _columns(train, ("text", "label"), (str, str))
    names = sorted(set(train_labels))
    if len(names) < 2:
        raise DataError(f"{train}: all {len(train_labels):,} labels are {names[0]!r}: there is nothing to tell apart")
    test_texts, test_labels = _columns(test, ("text", "label"), (str, str), labels=(names, train))
    number = {name: place for place, name in enumerate(names)}
    train_N, test_N = (np.array([number[label] for label in labels]) for labels in (train_labels, test_labels))
    train_ND, test_ND = _encode(embedder, train_texts), _encode(embedder, test_texts)
    probe = LogisticRegression(max_iter=1000).fit(train_ND, train_N)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(train_N)), metric="cosine").fit(train_ND, train_N)
    settings = {"trained on": train, "examples": len(train_N)} | _cuts(embedder, [*train_texts, *test_texts])
    return [
        classified("linear probe", test, test_N, probe.predict_proba(test_ND), names, settings),
        classified(
            f"{near.n_neighbors} nearest neighbours", test, test_N, near.predict_proba(test_ND), names, settings
        ),
    ]


def classified(
    kind: str,
    source: str,
    true_N: NDArray[np.int64],
    probability_NC: NDArray[Any],
    names: Sequence[str],
    settings: dict[str, Any],
) -> Result:
    """The full result of a classifier from its probabilities; class c is called `names[c]`."""
    predicted_N = probability_NC.argmax(1)
    values = metrics.classification(true_N, predicted_N) | metrics.calibration(true_N, probability_NC)
    return Result(
        kind,
        source,
        "accuracy",
        values | {"examples": len(true_N)},
        settings,
        report=metrics.class_report(true_N, predicted_N, names),
        confusion=metrics.confusion(true_N, predicted_N, len(names)).tolist(),
        reliability=[row._asdict() for row in metrics.reliability(true_N, probability_NC)],
    )


def read_beir(folder: Path, split: str) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, float]]]:
    """Texts of documents, texts of queries, and the grades of the documents of each query.

    Raises DataError if a file or field is missing, or a grade is of a query or document that is not there.
    """
    corpus, queries = _texts(folder / "corpus.jsonl"), _texts(folder / "queries.jsonl")
    path = folder / "qrels" / f"{split}.tsv"
    relevance: dict[str, dict[str, float]] = {}
    for where, query, document, grade in _fields(str(path), ("query-id", "corpus-id", "score"), (str, str, float)):
        for what, key, known in (("query", query, queries), ("document", document, corpus)):
            if key not in known:
                raise DataError(f"{where}: {what} {key!r} is not among the {len(known):,} of its file in {folder}")
        relevance.setdefault(query, {})[document] = grade
    return corpus, queries, relevance


def _texts(path: Path) -> dict[str, str]:
    """Texts by _id, after their title if they have one."""
    texts = {}
    for where, record in read_records(str(path)):
        if "_id" not in record or not isinstance(record.get("text"), str):
            raise DataError(f"{where}: a document or query needs _id and text; there are {', '.join(record)}")
        texts[str(record["_id"])] = f"{record.get('title') or ''} {record['text']}".strip()
    return texts


def _encode(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    return embedder.encode(texts).numpy()


def _cuts(embedder: Embedder, texts: Sequence[str]) -> dict[str, str]:
    """Whether texts were read only in part."""
    count = sum(len(row) > embedder.max_tokens for row in embedder.tokenize(texts))
    return {"cut": f"{count:,} of {len(texts):,} texts at {embedder.max_tokens:,} tokens"} if count else {}


def _cosines(embedder: Embedder, first: Sequence[str], second: Sequence[str]) -> NDArray[np.float64]:
    both_ND = _encode(embedder, [*first, *second]).astype(np.float64)
    return (both_ND[: len(first)] * both_ND[len(first) :]).sum(1)


def _columns(
    path: str, names: Sequence[str], kinds: Sequence[type], labels: tuple[Sequence[str], str] | None = None
) -> list[list[Any]]:
    """The fields of a file of examples, each as a list. `labels` are those that the last field may have, and the file that
    has them. Raises DataError that names the line."""
    rows = []
    for where, *values in _fields(path, names, kinds):
        if labels and values[-1] not in labels[0]:
            raise DataError(
                f"{where}: label {values[-1]!r} is not among the {len(labels[0])} of {labels[1]} "
                f"({', '.join(labels[0][:10])}): correct it, or add training examples of it"
            )
        rows.append(values)
    if not rows:
        raise DataError(f"{path}: holds no example")
    return [list(column) for column in zip(*rows, strict=True)]


def _fields(path: str, names: Sequence[str], kinds: Sequence[type]) -> Iterator[list[Any]]:
    """Where each example stands, and its named fields."""
    for where, record in read_records(path):
        if missing := [name for name in names if record.get(name) is None]:
            raise DataError(f"{where}: no field {missing[0]!r}; there are {', '.join(record)}")
        yield [where, *(_field(where, name, record[name], kind) for name, kind in zip(names, kinds, strict=True))]


def _field(where: str, name: str, value: Any, kind: type) -> Any:
    """The value as text, number or whole number; numbers may serve as texts. Raises DataError for anything else."""
    if kind is str and isinstance(value, str | int | float):
        return str(value)
    try:
        if kind is not str and (number := float(value)) == (found := kind(number)):
            return found
    except (TypeError, ValueError, OverflowError):
        pass
    wanted = {str: "a text", float: "a number", int: "a whole number"}[kind]
    raise DataError(f"{where}: {name} is {value!r}, not {wanted}")
