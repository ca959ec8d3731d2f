"""What pretraining is worth on few labels: movie-review polarity (Pang and Lee 2005, 10,662 sentences), from scratch.

    python -m benchmarks.reviews FOLDER --out runs/reviews

FOLDER has rt-polarity.pos and rt-polarity.neg. A small BERT is pretrained on the training sentences without their labels and
a little of the Python standard library, then fine-tuned; its twin is fine-tuned from random weights, and TF-IDF with logistic
regression is the floor. Each of the three takes its settings from the same validation sentences, and the table shows the
test sentences. Everything runs through this project's commands; stopped, the same command goes on.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LABELS = ("pos", "neg")
TENTHS = {"test": (0,), "valid": (1,), "train": range(2, 10)}
RATES = (3e-4, 1e-3)
SEEDS = (1, 2, 3)
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


def command(*arguments: object) -> None:
    """Run a command of this project. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, check=True)


def write_splits(folder: Path, out: Path) -> None:
    """The sentences as {split}.jsonl, split 8 : 1 : 1 by a hash of their text, so that no text is in two splits."""
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


def pretrain(out: Path) -> None:
    reviews, python = out / "corpora" / "reviews", out / "corpora" / "python"
    prepare = ("-m", "data", "prepare")
    command(*prepare, out / "train.jsonl", "--out", reviews, "--vocab-size", 8192, "--split-valid", 0.03)
    command(*prepare, "stdlib", "--out", python, "--tokenizer", reviews / "tokenizer.json")
    (out / "pretrain.yaml").write_text(PRETRAIN.format(out=out))
    command("train.py", out / "pretrain.yaml", f"run.folder={out}/runs")


def finetune(out: Path, start: str, rate: float, seed: int) -> Path:
    """The run of one fine-tuning, from the pretrained weights or from random ones."""
    name = f"{start}-{rate:g}-{seed}"
    files = ("--train", out / "train.jsonl", "--valid", out / "valid.jsonl", "--recipe", out / f"{name}.yaml")
    settings = [f"run.name={name}", f"run.folder={out}/runs", f"run.seed={seed}", f"optimizer.lr={rate}"]
    settings += ["model.dropout=0.1", "validation.metric=accuracy", "monitor.log_every_steps=20"]
    if start == "random":
        settings += ["run.start_from=''", f"data.examples.tokenizer={out}/corpora/reviews/tokenizer.json"]
    command("-m", "tasks", "finetune", "classification", out / "runs" / "pretrain", *files, "--epochs", 4, *settings)
    return out / "runs" / name


def validated(run: Path) -> float:
    """Best accuracy on the validation sentences: that of the checkpoint that counts."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return max(record["validation_accuracy"] for record in records if "validation_accuracy" in record)


def tested(run: Path, out: Path) -> float:
    command("-m", "tasks", "evaluate", run, "--examples", out / "test.jsonl", "--out", run / "test")
    (result,) = json.loads((run / "test" / "evaluation.json").read_text())["results"]
    return result["metrics"]["accuracy"]


def model_row(out: Path, start: str) -> tuple[str, float, list[float]]:
    """The best rate by validation, its validation accuracy, and the test accuracy of each seed."""
    found = {rate: validated(finetune(out, start, rate, SEEDS[0])) for rate in RATES}
    rate = max(found, key=lambda rate: found[rate])
    return f"{start}, lr {rate:g}", found[rate], [tested(finetune(out, start, rate, seed), out) for seed in SEEDS]


def floor_row(out: Path) -> tuple[str, float, list[float]]:
    """TF-IDF of words and pairs of words, and logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    read = {name: [json.loads(line) for line in (out / f"{name}.jsonl").open(encoding="utf-8")] for name in TENTHS}
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(r["text"] for r in read["train"])
    text = {name: vectorizer.transform(r["text"] for r in records) for name, records in read.items()}
    label = {name: [r["label"] for r in records] for name, records in read.items()}
    models = {c: LogisticRegression(C=c, max_iter=1000).fit(text["train"], label["train"]) for c in PENALTIES}
    scores = {c: model.score(text["valid"], label["valid"]) for c, model in models.items()}
    best = max(scores, key=lambda c: scores[c])
    test = models[best].score(text["test"], label["test"])
    return f"TF-IDF + logistic regression, C {best:g}", scores[best], [test]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with rt-polarity.pos and rt-polarity.neg")
    parser.add_argument("--out", type=Path, required=True, help="folder for corpora, runs and the table")
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_splits(options.folder, out)
    pretrain(out)
    rows = [model_row(out, "pretrained"), model_row(out, "random"), floor_row(out)]
    lines = ["| start | validation | test, mean of seeds ± sd |", "| --- | --- | --- |"]
    for name, valid, tests in rows:
        spread = f" ± {100 * statistics.stdev(tests):.1f}" if len(tests) > 1 else ""
        lines.append(f"| {name} | {100 * valid:.1f} % | {100 * statistics.mean(tests):.1f} %{spread} |")
    table = "\n".join(lines)
    (out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
