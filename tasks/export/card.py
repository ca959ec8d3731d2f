"""README.md of an exported folder: what the model is, what it was trained on and how, and how to load it."""

import json
from pathlib import Path
from typing import Any

import yaml

from config import DataError, RunConfig, dump_recipe
from config.count import count_parameters
from data.manifest import Manifest
from engine.checkpoint import STATE, find_checkpoint
from engine.monitor import METRICS
from engine.runs import DATA
from model.hf import architecture
from tasks.checkpoints import Trained
from tasks.embedding import Embedder
from tasks.export import gguf_file, onnx_graph

TASKS = {"bert": "fill-mask", "gpt": "text-generation", "t5": "text2text-generation"}
AUTO_CLASSES = {
    "bert": "AutoModelForMaskedLM", "gpt": "AutoModelForCausalLM", "t5": "AutoModelForSeq2SeqLM",
}  # fmt: skip


def write_card(folder: Path, trained: Trained, source: Path, embedder: Embedder | None, *, heads: bool) -> None:
    """Write README.md. The license is the user's to add: nothing here knows it.

    `embedder` makes the vectors that the folder's sentence-transformers layout makes, if it has one.
    """
    sections = [
        _front_matter(trained, embedder, heads),
        f"# {_name(trained, source)}",
        _facts(trained),
        _usage(folder, trained, embedder, heads),
    ]
    if trained.recipe is not None:
        checkpoint = find_checkpoint(source)
        sections += [_training(trained, checkpoint), _data(trained, trained.recipe, checkpoint)]
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
        "pipeline_tag": TASKS[trained.config.family] if heads else "sentence-similarity",
        "tags": tags,
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False)}# license: add yours\n---"


def _facts(trained: Trained) -> str:
    config, tokenizer = trained.config, trained.tokenizer
    counts = count_parameters(config)
    return table(
        "Model",
        {
            "architecture": f"{architecture(config).model_type} (family {config.family})",
            "parameters": f"{counts.total:,}",
            "blocks": config.num_layers,
            "width": config.hidden_size,
            "heads": f"{config.num_heads}, {config.kv_heads} of keys and values",
            "longest text": f"{config.max_positions:,} tokens",
            "vocabulary": f"{tokenizer.vocab_size:,} tokens, {config.vocab_size:,} rows",
            "tokenizer": f"SHA-256 {tokenizer.fingerprint}",
        },
    )


def _training(trained: Trained, checkpoint: Path) -> str:
    state = json.loads((checkpoint / STATE).read_text())["run"]
    rows: dict[str, Any] = {
        "objective": trained.objective.name,
        "steps": f"{state['step']:,}",
        "tokens read": f"{state['tokens']:,}",
    }
    measured = last_validation(checkpoint.parent.parent / METRICS, state["step"])
    if measured is not None:
        rows["validation loss"] = f"{measured[1]:.4f} after step {measured[0]:,}"
    return table("Training", rows)


def last_validation(metrics: Path, step: int) -> tuple[int, float] | None:
    """Step and loss of the last validation up to `step`, None if there was none."""
    if not metrics.is_file():
        return None
    found = None
    for line in metrics.read_text().splitlines():
        record = json.loads(line)
        if "validation_loss" in record and record["step"] <= step:
            found = record["step"], record["validation_loss"]
    return found


def _data(trained: Trained, recipe: RunConfig, checkpoint: Path) -> str:
    """The datasets by the hashes that the checkpoint counts in, with their sizes where they can still be read."""
    lines = ["## Data", "", "| dataset | weight | tokens | documents | sources | hash |", "|---|---|---|---|---|---|"]
    weights = {dataset.path: dataset.weight for dataset in recipe.data.datasets}
    for path, hash_ in json.loads((checkpoint / DATA).read_text()).items():
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


def _usage(folder: Path, trained: Trained, embedder: Embedder | None, heads: bool) -> str:
    parts = []
    if heads:
        auto_class = AUTO_CLASSES[trained.config.family]
        parts.append(
            f"from transformers import AutoTokenizer, {auto_class}\n\n"
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
            f'model = {auto_class}.from_pretrained("FOLDER")'
        )
    if embedder is not None:
        parts.append(
            "from sentence_transformers import SentenceTransformer\n\n"
            f"# pooling {embedder.pooling}, {embedder.dimensions} dimensions, length 1\n"
            'vectors = SentenceTransformer("FOLDER").encode(["a text", "another"])'
        )
    text = "## Use\n\n" + "\n\n".join(f"```python\n{part}\n```" for part in parts)
    if (folder / onnx_graph.FILE).is_file():
        text += f"\n\n`{onnx_graph.FILE}` gives last_hidden_state from input_ids and attention_mask, in fp32."
    if (folder / gguf_file.FILE).is_file():
        text += f"\n\n`{gguf_file.FILE}` is for llama.cpp: `llama-completion -m {gguf_file.FILE} -p TEXT`."
    return text


def table(title: str, rows: dict[str, Any]) -> str:
    return "\n".join(
        [f"## {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    )
