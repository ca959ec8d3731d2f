"""What pretraining is worth on few labels: movie-review polarity (Pang and Lee 2005, 10,662 sentences), from scratch.

    python -m benchmarks.reviews FOLDER --out runs/reviews

FOLDER has rt-polarity.pos and rt-polarity.neg. A small BERT is pretrained on the training sentences without their labels and
a little of the Python standard library, then fine-tuned on 1,000 labels and on all; its twin is fine-tuned from random
weights, and TF-IDF with logistic regression is the floor. Each of the three takes its settings from the same validation
sentences, and the table shows the test sentences. A second table shows how well the second half of a test sentence is found
by its first, before and after contrastive training on crops. Everything runs through this project's commands; stopped, the
same command goes on.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tasks import metrics

ROOT = Path(__file__).parents[1]
LABELS, STARTS = ("pos", "neg"), ("pretrained", "random")
TENTHS = {"test": (0,), "valid": (1,), "train": range(2, 10)}
RATES = (3e-4, 1e-3)
SEEDS = (1, 2, 3)
FEW = 1000
EPOCHS = {"few": (3, 10), "train": (1, 4)}
"""Of each fine-tuning: soon done, and as long as the validation still rises."""
ENGINE = ("engine.precision=bf16", "engine.kernel=reference")
"""Fastest for short rows of a small model on a CPU with AMX."""
SHORTEST = 16
"""Words of a sentence that is long enough to be cut in two."""
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
PRETRAIN = """\
data:
  datasets: [{{path: {out}/corpora/reviews, weight: 9}}, {{path: {out}/corpora/python}}]
  row_length: 64
  document_masking: true
objective: {{name: masked_lm, mask_rate: 0.2, whole_word: true}}
model: {{family: bert, vocab_size: 8256, num_layers: 4, hidden_size: 128, num_heads: 2, max_positions: 128, dropout: 0.0}}
batch: {{global_batch_size: 64, micro_batch_size: 64}}
optimizer: {{name: muon, lr: 3e-3}}
schedule: {{name: wsd, steps: 1500, warmup_steps: 50, min_lr_ratio: 0.0}}
validation: {{every_steps: 500, rows: 100}}
"""
CROPS = """\
run: {{start_from: {out}/runs/pretrain}}
data: {{datasets: [{{path: {out}/corpora/reviews}}], row_length: 32}}
objective: {{name: contrastive, min_crop: 0.3, max_crop: 0.7}}
model: {{family: bert, vocab_size: 8256, num_layers: 4, hidden_size: 128, num_heads: 2, max_positions: 128, dropout: 0.0}}
batch: {{global_batch_size: 128, micro_batch_size: 128}}
optimizer: {{lr: 5e-4, weight_decay: 0.01}}
schedule: {{name: linear, steps: 200, warmup_steps: 30, min_lr_ratio: 0.0}}
validation: {{every_steps: 100, rows: 128}}
"""


def command(*arguments: object) -> None:
    """Run a command of this project. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def write_splits(folder: Path, out: Path) -> None:
    """The sentences as {split}.jsonl, split 8 : 1 : 1 by a hash of their text, so that no text is in two splits. Those of
    few.jsonl are the training sentences with the smallest hashes."""
    lines: dict[str, list[str]] = {name: [] for name in TENTHS}
    for label in LABELS:
        for sentence in (folder / f"rt-polarity.{label}").read_text(encoding="utf-8").split("\n"):
            text = " ".join(sentence.split())
            if text:
                tenth = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
                split = next(name for name, tenths in TENTHS.items() if tenth in tenths)
                lines[split].append(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n")
    for name, found in lines.items():
        (out / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")
    by_hash = {hashlib.sha256(json.loads(line)["text"].encode()).digest(): line for line in lines["train"]}
    few = [by_hash[digest] for digest in sorted(by_hash)[:FEW]]
    (out / "few.jsonl").write_text("".join(few), encoding="utf-8")


def pretrain(out: Path) -> None:
    reviews, python = out / "corpora" / "reviews", out / "corpora" / "python"
    prepare = ("-m", "data", "prepare")
    command(*prepare, out / "train.jsonl", "--out", reviews, "--vocab-size", 8192, "--split-valid", 0.03)
    command(*prepare, "stdlib", "--out", python, "--tokenizer", reviews / "tokenizer.json")
    (out / "pretrain.yaml").write_text(PRETRAIN.format(out=out))
    command("train.py", out / "pretrain.yaml", f"run.folder={out}/runs")


def finetune(out: Path, examples: str, epochs: int, start: str, rate: float, seed: int) -> Path:
    """The run of one fine-tuning, from the pretrained weights or from random ones."""
    name = f"{examples}-{epochs}-{start}-{rate:g}-{seed}"
    files = ("--train", out / f"{examples}.jsonl", "--valid", out / "valid.jsonl", "--recipe", out / f"{name}.yaml")
    settings = [f"run.name={name}", f"run.folder={out}/runs", f"run.seed={seed}", f"optimizer.lr={rate}"]
    settings += ["model.dropout=0.1", "validation.metric=accuracy", "monitor.log_every_steps=20", *ENGINE]
    if start == "random":
        settings += ["run.start_from=''", f"data.examples.tokenizer={out}/corpora/reviews/tokenizer.json"]
    command(
        "-m", "tasks", "finetune", "classification", out / "runs" / "pretrain", *files, "--epochs", epochs, *settings
    )
    return out / "runs" / name


def validated(run: Path) -> list[float]:
    """Accuracy on the validation sentences after each epoch. The best checkpoint counts."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["validation_accuracy"] for record in records if "validation_accuracy" in record]


def tested(run: Path, out: Path) -> float:
    command("-m", "tasks", "evaluate", run, "--examples", out / "test.jsonl", "--out", run / "test")
    (result,) = json.loads((run / "test" / "evaluation.json").read_text())["results"]
    return result["metrics"]["accuracy"]


def model_row(out: Path, examples: str, epochs: int, start: str) -> tuple[str, list[float], list[float]]:
    """The best rate by validation, its validation accuracy by epoch, and the test accuracy of each seed."""
    found = {rate: validated(finetune(out, examples, epochs, start, rate, SEEDS[0])) for rate in RATES}
    rate = max(found, key=lambda rate: max(found[rate]))
    tests = [tested(finetune(out, examples, epochs, start, rate, seed), out) for seed in SEEDS]
    return f"{start} weights, lr {rate:g}", found[rate], tests


def texts(path: Path, field: str = "text") -> list[str]:
    return [json.loads(line)[field] for line in path.open(encoding="utf-8")]


def floor_row(out: Path, examples: str) -> tuple[str, list[float], list[float]]:
    """TF-IDF of words and pairs of words, and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts(out / f"{examples}.jsonl"))
    paths = {name: out / f"{name}.jsonl" for name in (examples, "valid", "test")}
    given = {name: (vectorizer.transform(texts(path)), texts(path, "label")) for name, path in paths.items()}
    models = {c: LogisticRegression(C=c, max_iter=1000).fit(*given[examples]) for c in PENALTIES}
    scores = {c: model.score(*given["valid"]) for c, model in models.items()}
    best = max(scores, key=lambda c: scores[c])
    return f"TF-IDF + logistic regression, C {best:g}", [scores[best]], [models[best].score(*given["test"])]


def polarity(out: Path, examples: str, epochs: int) -> Iterator[str]:
    """Lines of a table."""
    count = len(texts(out / f"{examples}.jsonl"))
    yield f"| {count:,} labels, {epochs} epochs | validation by epoch, % | test, mean of {len(SEEDS)} seeds ± sd |\n| --- | --- | --- |"
    for name, valid, tests in (
        *(model_row(out, examples, epochs, start) for start in STARTS),
        floor_row(out, examples),
    ):
        spread = f" ± {100 * statistics.stdev(tests):.1f}" if len(tests) > 1 else ""
        by_epoch = " ".join(f"{100 * accuracy:.1f}" for accuracy in valid)
        yield f"| {name} | {by_epoch} | {100 * statistics.mean(tests):.1f} %{spread} |"


def write_halves(out: Path) -> tuple[list[str], list[str]]:
    """First and second halves of the long test sentences, and a folder of them in BEIR's layout."""
    words = [sentence for text in texts(out / "test.jsonl") if len(sentence := text.split()) >= SHORTEST]
    first = [" ".join(sentence[: len(sentence) // 2]) for sentence in words]
    second = [" ".join(sentence[len(sentence) // 2 :]) for sentence in words]
    (out / "halves" / "qrels").mkdir(parents=True, exist_ok=True)
    for name, halves in (("queries", first), ("corpus", second)):
        lines = [json.dumps({"_id": str(n), "text": half}) + "\n" for n, half in enumerate(halves)]
        (out / "halves" / f"{name}.jsonl").write_text("".join(lines))
    grades = "".join(f"{number}\t{number}\t1\n" for number in range(len(words)))
    (out / "halves" / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{grades}")
    return first, second


def found_by_tfidf(out: Path, first: list[str], second: list[str]) -> dict[str, float]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(texts(out / "train.jsonl"))
    cosine_QN = (vectorizer.transform(first) @ vectorizer.transform(second).T).toarray()
    rankings = {str(query): list(map(str, order)) for query, order in enumerate((-cosine_QN).argsort(1, kind="stable"))}
    return metrics.retrieval({query: {query: 1.0} for query in rankings}, rankings)


def retrieval(out: Path) -> Iterator[str]:
    """Lines of a table."""
    (out / "crops.yaml").write_text(CROPS.format(out=out))
    command("train.py", out / "crops.yaml", f"run.folder={out}/runs")
    halves = write_halves(out)
    values = {}
    for name, run in (("masked words, mean pooling", "pretrain"), ("then contrastive on crops", "crops")):
        folder = out / "runs" / run
        command("-m", "tasks", "evaluate", folder, "--retrieval", out / "halves", "--pooling", "mean", "--out", folder)
        (result,) = json.loads((folder / "evaluation.json").read_text())["results"]
        values[name] = result["metrics"]
    values["TF-IDF"] = found_by_tfidf(out, *halves)
    yield f"| {len(halves[0])} halves | nDCG@10 | recall@10 | recall@100 |\n| --- | --- | --- | --- |"
    for name, found in values.items():
        yield f"| {name} | " + " | ".join(f"{found[key]:.3f}" for key in ("ndcg@10", "recall@10", "recall@100")) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with rt-polarity.pos and rt-polarity.neg")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpora, runs and the table")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_splits(options.folder, out)
    pretrain(out)
    lines = [
        line
        for examples, lengths in EPOCHS.items()
        for epochs in lengths
        for line in (*polarity(out, examples, epochs), "")
    ]
    lines += retrieval(out)
    table = "\n".join(lines)
    (out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
