"""A search set from the Python standard library: which function does a docstring describe?

    python -m benchmarks.docstrings --out corpora/docstrings

writes train.jsonl and valid.jsonl (anchor: the first paragraph of a docstring, positive: the function without it), test/
in BEIR's layout for `python -m tasks evaluate --retrieval`, and prints what TF-IDF finds of it. All functions of a file
are in one split, which the file's name decides.
"""

import argparse
import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.stdlib import python_files
from tasks import metrics

Pair = tuple[str, str]
"""What a function does, in words, and the function."""
SHORTEST = 20
"""Characters of a docstring that says something."""
TWENTIETHS = {"test": range(2), "valid": range(2, 3), "train": range(3, 20)}
PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
"""A part of a name: getattr_static and HTTPServer have two each."""


def pairs_of(source: str) -> Iterator[Pair]:
    """The documented functions of a file, methods and nested ones included."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or len(node.body) < 2:
            continue
        text = (ast.get_docstring(node) or "").split("\n\n")[0]
        if len(text) >= SHORTEST:
            node.body = node.body[1:]
            yield " ".join(text.split()), ast.unparse(node)


def splits(files: Iterable[Path]) -> dict[str, list[Pair]]:
    """Pairs by split. Docstrings and functions that occur twice are left out: they have no one answer."""
    found: dict[str, list[Pair]] = {name: [] for name in TWENTIETHS}
    for path in files:
        if "test" in path.parent.parts[-1]:
            continue
        place = int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % 20
        split = next(name for name, places in TWENTIETHS.items() if place in places)
        try:
            found[split] += pairs_of(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):  # samples of broken files
            continue
    seen = Counter(text for pairs in found.values() for pair in pairs for text in pair)
    return {name: [p for p in pairs if seen[p[0]] == seen[p[1]] == 1] for name, pairs in found.items()}


def write(found: dict[str, list[Pair]], out: Path) -> None:
    """Pairs to train on, and the test in BEIR's layout."""
    test, ids = out / "test", [str(number) for number in range(len(found["test"]))]
    (test / "qrels").mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid"):
        write_lines(out / f"{name}.jsonl", ({"anchor": text, "positive": code} for text, code in found[name]))
    for column, name in enumerate(("queries", "corpus")):
        lines = ({"_id": i, "text": pair[column]} for i, pair in zip(ids, found["test"], strict=True))
        write_lines(test / f"{name}.jsonl", lines)
    grades = ["query-id\tcorpus-id\tscore", *(f"{i}\t{i}\t1" for i in ids)]
    (test / "qrels" / "test.tsv").write_text("\n".join(grades) + "\n")


def write_lines(path: Path, records: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def tfidf(pairs: list[Pair]) -> dict[str, float]:
    """What TF-IDF over the parts of names finds, weighed on the test's functions."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer=lambda text: [part.lower() for part in PART.findall(text)], sublinear_tf=True)
    document_NV = vectorizer.fit_transform([code for _, code in pairs])
    cosine_QN = (vectorizer.transform([text for text, _ in pairs]) @ document_NV.T).toarray()
    rankings = {str(query): list(map(str, order)) for query, order in enumerate((-cosine_QN).argsort(1, kind="stable"))}
    return metrics.retrieval({str(number): {str(number): 1.0} for number in range(len(pairs))}, rankings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    out = parser.parse_args().out
    found = splits(python_files())
    write(found, out)
    print(f"{out}: " + ", ".join(f"{len(pairs):,} pairs to {name}" for name, pairs in found.items()))
    values = tfidf(found["test"])
    print("TF-IDF: " + ", ".join(f"{name} {values[name]:.4f}" for name in ("ndcg@10", "recall@1", "recall@10")))


if __name__ == "__main__":
    main()
