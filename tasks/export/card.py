"""README.md of an exported folder: what the model is, what it was trained on and how, and how to load it."""

import json
from pathlib import Path
from typing import Any

import yaml

from config import DataError, RunConfig, dump_recipe
from config.count import count_parameters
from data.manifest import Manifest
from engine.checkpoint import BEST, STATE, find_checkpoint
from engine.monitor import METRICS
from engine.runs import DATA
from model.hf import architecture
from tasks.checkpoints import Trained
from tasks.embedding import Embedder
from tasks.export.loading import auto_class, usage

TASKS = {
    "AutoModelForMaskedLM": "fill-mask", "AutoModelForPreTraining": "fill-mask", "AutoModelForCausalLM": "text-generation",
    "AutoModelForSeq2SeqLM": "text2text-generation", "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}  # fmt: skip
"""By the class that loads a model, what the hub calls its use."""


def write_card(folder: Path, trained: Trained, source: Path, embedder: Embedder | None, *, heads: bool) -> None:
    """Write README.md. License and language are the user's to add: nothing here knows them.

    `embedder` makes the vectors that the folder's sentence-transformers layout makes, if it has one.
    """
    sections = [
        _front_matter(trained, embedder, heads),
        f"# {_name(trained, source)}",
        _facts(trained, heads),
        usage(folder, trained, embedder, heads=heads),
    ]
    if trained.recipe is not None:
        checkpoint = find_checkpoint(source)
        sections += [_training(trained.recipe, checkpoint), _data(trained.recipe, checkpoint)]
        sections.append(f"## Recipe\n\n```yaml\n{dump_recipe(trained.recipe)}```")
    else:
        sections.append(f"Weights and tokenizer are those of the folder `{source.name}`.")
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _name(trained: Trained, source: Path) -> str:
    return trained.recipe.run.name if trained.recipe else source.resolve().name


def _front_matter(trained: Trained, embedder: Embedder | None, heads: bool) -> str:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    tags = ["groundwork", architecture(trained.config).model_type]
    if embedder is not None:
        tags += ["sentence-transformers", "sentence-similarity", "feature-extraction"]
    facts = {
        "library_name": "transformers" if heads else "sentence-transformers",
        "pipeline_tag": TASKS[auto_class(trained)] if heads else "sentence-similarity",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}# license: add yours\n# language: add yours\n---"


def _facts(trained: Trained, heads: bool) -> str:
    config, tokenizer = trained.config, trained.tokenizer
    counts = count_parameters(config, trained.objective)
    return table(
        "Model",
        {
            "architecture": f"{architecture(config).model_type} (family {config.family})",
            "parameters": f"{counts.total - (0 if heads else counts.head):,}",
            "blocks": config.num_layers,
            "width": config.hidden_size,
            "heads": f"{config.num_heads}, {config.kv_heads} of keys and values",
            "longest text": f"{config.max_positions:,} tokens",
            "vocabulary": f"{tokenizer.vocab_size:,} tokens, {config.vocab_size:,} rows",
            "tokenizer": f"SHA-256 {tokenizer.fingerprint}",
        },
    )


def _training(recipe: RunConfig, checkpoint: Path) -> str:
    state = json.loads((checkpoint / STATE).read_text())["run"]
    rows: dict[str, Any] = {
        "objective": recipe.objective.name,
        "steps": f"{state['step']:,}",
        "tokens read": f"{state['tokens']:,}",
    }
    if recipe.run.start_from:
        rows["started from"] = recipe.run.start_from
    best = checkpoint.parent / BEST
    if best.is_file() and best.read_text().strip() == checkpoint.name:
        rows["chosen as"] = f"the best by validation {recipe.validation.metric}"
    measured = last_validation(checkpoint.parent.parent / METRICS, state["step"])
    for name, value in measured.items():
        rows[name.replace("_", " ")] = f"{value:.4f}" if isinstance(value, float) else f"{value:,}"
    return table("Training", rows)


def last_validation(metrics: Path, step: int) -> dict[str, float]:
    """What the last validation up to `step` measured, and after which step; empty if there was none."""
    if not metrics.is_file():
        return {}
    found = {}
    for line in metrics.read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # a kill cut it short
            continue
        if "validation_loss" in record and record["step"] <= step:
            found = {n: v for n, v in record.items() if n.startswith("validation_") and isinstance(v, int | float)}
            found["validated after step"] = record["step"]
    return found


def _data(recipe: RunConfig, checkpoint: Path) -> str:
    """What was learned from, by the hashes that the checkpoint counts in; of datasets the sizes, where they can still be
    read."""
    hashes = json.loads((checkpoint / DATA).read_text())
    if labelled := recipe.data.examples or recipe.data.pairs:
        learned = ", ".join(f"{path} ({hash_[:12]})" for path, hash_ in hashes.items())
        return table("Data", {"learned from": learned, "validated on": labelled.valid or "nothing"})
    lines = ["## Data", "", "| dataset | weight | tokens | documents | sources | hash |", "|---|---|---|---|---|---|"]
    weights = {dataset.path: dataset.weight for dataset in recipe.data.datasets}
    for path, hash_ in hashes.items():
        manifest = _manifest(Path(path), hash_)
        sizes = ["?", "?", "?"]
        if manifest is not None:
            names = ", ".join(source.name for source in manifest.sources)
            sizes = [f"{manifest.tokens:,}", f"{manifest.documents:,}", names]
        lines.append("| " + " | ".join([path, f"{weights.get(path, 1):g}", *sizes, hash_[:12]]) + " |")
    return "\n".join(lines)


def _manifest(folder: Path, hash_: str) -> Manifest | None:
    """None if the dataset is no longer there or is another one now."""
    try:
        manifest = Manifest.load(folder)
    except DataError:
        return None
    return manifest if manifest.hash == hash_ else None


def table(title: str, rows: dict[str, Any]) -> str:
    return "\n".join(
        [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )
