"""The files by which sentence-transformers, vLLM and TEI know how a model's token states become a vector."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from config import CheckpointError
from tasks.embedding import Embedder
from tasks.export.check import TEXTS, require
from tasks.export.tokenizer import write_json

MODES = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last": "pooling_mode_lasttoken",
    "max": "pooling_mode_max_tokens", "root": "pooling_mode_mean_sqrt_len_tokens",
    "weighted": "pooling_mode_weightedmean_tokens",
}  # fmt: skip
"""Their switches; ours are the first three. Newer releases write one setting, but all readers know the switches."""
TOLERANCE = 1e-5
"""Largest difference between numbers of two vectors, as a share of the largest, or of 1."""


def write_sentence_layout(folder: Path, embedder: Embedder) -> None:
    """Transformer → pooling → the first `dimensions` numbers, if not all → a vector of length 1, if `normalize`."""
    pooling = {switch: name == embedder.pooling for name, switch in MODES.items()}
    steps: dict[str, dict[str, Any]] = {
        "Pooling": {"word_embedding_dimension": embedder.width, **pooling, "include_prompt": True}
    }
    if embedder.dimensions < embedder.width:
        steps["Dense"] = {
            "in_features": embedder.width,
            "out_features": embedder.dimensions,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
    if embedder.normalize:
        steps["Normalize"] = {}
    modules: list[dict[str, Any]] = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    for number, (kind, settings) in enumerate(steps.items(), start=1):
        path = f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir()
        write_json(folder / path / "config.json", settings)
        if kind == "Dense":
            first_ED = torch.eye(embedder.dimensions, embedder.width)
            save_file({"linear.weight": first_ED}, folder / path / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": embedder.max_tokens, "do_lower_case": False})
    similarity: dict[str, Any] = {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", similarity)


def check_sentences(folder: Path, embedder: Embedder) -> float:
    """Largest difference between SentenceTransformer's vectors of texts and ours, both in fp32.

    Raises CheckpointError if it is above `TOLERANCE`, ConfigError if sentence-transformers is not installed.
    """
    package = require("sentence_transformers", "the layout of embedding models is checked with sentence-transformers")
    theirs = package.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = [*TEXTS, TEXTS[0] * (embedder.max_tokens // 8)]  # the last one is cut
    actual_ND = torch.from_numpy(theirs.encode(texts, show_progress_bar=False)).float()
    expected_ND = embedder.encode(texts)
    if actual_ND.shape != expected_ND.shape:
        raise CheckpointError(
            f"the export is refused: sentence-transformers makes vectors {tuple(actual_ND.shape)}, not {tuple(expected_ND.shape)}"
        )
    difference = ((actual_ND - expected_ND).abs().max() / expected_ND.abs().max().clamp(min=1)).item()
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"the export is refused: vectors of sentence-transformers differ by {difference:.1e}, more than {TOLERANCE:g}"
        )
    return difference
