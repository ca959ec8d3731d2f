"""How good a model is: perplexity of text, uses of its vectors, tasks of lm-evaluation-harness and MTEB; table, JSON and page."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import ConfigError
from tasks.dtype import add_dtype

if TYPE_CHECKING:
    import torch

    from data.manifest import Split
    from tasks.checkpoints import Trained
    from tasks.evaluation.result import Result

JSON_NAME, PAGE_NAME = "evaluation.json", "evaluation.html"
PAGE = "evaluation/page.html.jinja"
EXTRAS = {"lm_eval": "harness", "mteb": "mteb"}
"""What to install for a package; the others belong to `evaluate`."""
BELONGS = {
    ("window", "stride"): ("text", "dataset"),
    ("text_field",): ("text",),
    ("split", "rows"): ("dataset",),
    ("set",): ("examples",),
    ("pooling", "dimensions"): ("sts", "pairs", "retrieval", "classify", "mteb"),
    ("mteb_data",): ("mteb",),
    ("harness_tasks", "limit", "shots"): ("harness",),
}
"""Options that say how something is measured, and those that ask for it."""
TEXT_FIELD, ROWS = "text", 256
SPLIT: "Split" = "valid"
MANY: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or in Hugging Face's layout")
    parser.add_argument("--out", type=Path, help=f"folder for {JSON_NAME} and {PAGE_NAME}")
    add_dtype(parser)
    _add_text(parser.add_argument_group("text").add_argument)
    add = parser.add_argument_group("labelled examples").add_argument
    add("--examples", **MANY, metavar="FILE", help="examples like those a run was fine-tuned on")
    add(
        "--set",
        **MANY,
        metavar="SETTING",
        help="how they are read: data.examples.text=FIELD, data.examples.truncate=true",
    )
    _add_vectors(parser.add_argument_group("vectors (encoders and decoders)").add_argument)
    add = parser.add_argument_group("lm-evaluation-harness (decoders)").add_argument
    add("--harness", **MANY, metavar="TASK", help="its tasks")
    add("--harness-tasks", type=Path, metavar="FOLDER", help="task files (YAML) to take them from")
    add("--limit", type=int, help="examples of each task (all)")
    add("--shots", type=int, help="solved examples before each question (the task's)")


def _add_text(add: Callable[..., Any]) -> None:
    add("--text", **MANY, metavar="SOURCE", help="files or folders of text (as data prepare reads them)")
    add("--text-field", help=f"field of jsonl and parquet that holds the text ({TEXT_FIELD})")
    add("--dataset", **MANY, type=Path, metavar="FOLDER", help="prepared datasets")
    add("--split", choices=("train", "valid"), help=f"part of the datasets ({SPLIT})")
    add("--window", type=int, help="tokens the model reads at once (those of its training rows, else all it can)")
    add("--stride", type=int, help="tokens between two windows of a decoder; less than --window slides them (--window)")
    add("--rows", type=int, help=f"rows of a dataset that an encoder or T5 is judged by ({ROWS})")


def _add_vectors(add: Callable[..., Any]) -> None:
    add("--sts", **MANY, metavar="FILE", help="jsonl, csv or tsv with sentence1, sentence2, score")
    add("--pairs", **MANY, metavar="FILE", help="jsonl, csv or tsv with sentence1, sentence2, label 0 or 1")
    add("--retrieval", **MANY, metavar="FOLDER", help="corpus.jsonl, queries.jsonl, qrels/test.tsv (BEIR)")
    files = {"nargs": 2, "action": "append", "default": [], "metavar": ("TRAIN", "TEST")}
    add("--classify", **files, help="files with text, label")
    add("--mteb", **MANY, metavar="TASK", help="tasks of MTEB")
    add(
        "--mteb-data",
        type=Path,
        metavar="FOLDER",
        help="their data, as FOLDER/TASK (the cache of datasets, or the hub)",
    )
    add("--pooling", choices=("cls", "mean", "last"), help="vector of a text (as the model was trained)")
    add("--dimensions", type=int, help="first dimensions of the vectors to use (all)")


def run(options: argparse.Namespace) -> int:
    import torch

    from tasks.checkpoints import load_model
    from tasks.evaluation.result import as_json, as_table

    wanted = [measure for names, measure in MEASURES.items() if any(getattr(options, name) for name in names)]
    if not wanted:
        names = ", --".join(name for names in MEASURES for name in names)
        raise ConfigError(f"nothing to evaluate on: give one or more of --{names}")
    check_options(options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        trained = load_model(options.model, device, getattr(torch, options.dtype))
        results: list[Result] = []
        for result in (result for measure in wanted for result in measure(options, trained, device)):
            print(("\n" if results else "") + as_table([result]), flush=True)
            results.append(result)
        if options.out:
            from tasks.pages import render

            page = render(PAGE, model=options.model, dtype=options.dtype, results=results)
            (options.out / JSON_NAME).write_text(
                json.dumps(as_json(options.model, options.dtype, results), indent=1, allow_nan=False) + "\n"
            )
            (options.out / PAGE_NAME).write_text(page, encoding="utf-8")
            print(f"\n{options.out / PAGE_NAME}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package, "evaluate")
        raise ConfigError(f"this needs {package}, which is not installed: pip install -e '.[{extra}]'") from error
    return 0


def check_options(options: argparse.Namespace) -> None:
    """Raises ConfigError for an option of a measure that is not asked for, and for an --out that cannot be a folder."""
    for names, measures in BELONGS.items():
        for name in names:
            if getattr(options, name) not in (None, []) and not any(getattr(options, measure) for measure in measures):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is for --{', --'.join(measures)}: give one of them, or leave it out"
                )
    if options.out:
        try:
            options.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {options.out} cannot be a folder ({error.strerror}): give another") from None


def text(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """Perplexity of a decoder or pseudo-perplexity of an encoder on each source."""
    from tasks.checkpoints import check_family
    from tasks.evaluation.text import check_writes, predict, read_text

    check_family(trained, "--text", ("gpt", "bert"))
    check_writes(trained, "--text")
    for source in options.text:
        documents = read_text(source, trained.tokenizer, options.text_field or TEXT_FIELD)
        yield predict(trained, documents, source, options.window, options.stride, device)


def dataset(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """Perplexity of a decoder, or the loss of another model's objective, on each prepared dataset."""
    from tasks.evaluation.text import check_writes, held_out_loss, predict, read_dataset

    check_writes(trained, "--dataset")
    split: Split = options.split or SPLIT
    decodes = trained.config.family == "gpt"
    if decodes and options.rows is not None:
        raise ConfigError(f"--rows {options.rows}: a decoder reads all of a dataset; leave it out")
    if not decodes and options.stride is not None:
        raise ConfigError(f"--stride {options.stride}: only a decoder's windows slide over a dataset; leave it out")
    for folder in options.dataset:
        if decodes:
            documents = read_dataset(folder, split, trained)
            yield predict(trained, documents, f"{folder} ({split})", options.window, options.stride, device)
        else:
            rows = ROWS if options.rows is None else options.rows
            yield held_out_loss(trained, folder, split, options.window, rows, device)


def examples(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """What a fine-tuned model makes of each file of examples."""
    from tasks.evaluation.examples import on_examples

    yield from (on_examples(trained, path, device, options.set) for path in options.examples)


def vectors(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """Each use of the vectors on each of its files."""
    from tasks.embedding import Embedder
    from tasks.evaluation import vectors

    embedder = Embedder(trained, options.pooling, normalize=True, dimensions=options.dimensions)
    for measure, paths in (
        (vectors.similarity, options.sts),
        (vectors.pairs, options.pairs),
        (vectors.search, options.retrieval),
    ):
        yield from (measure(embedder, path) for path in paths)
    for train, test in options.classify:
        yield from vectors.classes(embedder, train, test)


def mteb(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """Tasks of MTEB."""
    from tasks.embedding import Embedder
    from tasks.evaluation.mteb_tasks import run_tasks

    embedder = Embedder(trained, options.pooling, dimensions=options.dimensions)
    yield from run_tasks(embedder, options.mteb, options.mteb_data)


def harness(options: argparse.Namespace, trained: "Trained", device: "torch.device") -> "Iterator[Result]":
    """Tasks of lm-evaluation-harness."""
    from tasks.checkpoints import check_family
    from tasks.evaluation.harness import run_tasks
    from tasks.evaluation.text import check_writes

    check_family(trained, "--harness", ("gpt",))
    check_writes(trained, "--harness")
    yield from run_tasks(
        trained, device, options.harness, folder=options.harness_tasks, limit=options.limit, shots=options.shots
    )


MEASURES = {
    ("text",): text,
    ("dataset",): dataset,
    ("examples",): examples,
    ("sts", "pairs", "retrieval", "classify"): vectors,
    ("mteb",): mteb,
    ("harness",): harness,
}
"""What measures, by the options that ask for it."""
