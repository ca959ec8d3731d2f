"""An exported folder: its files, what checks each of them, and a name only after all checks."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from config import CheckpointError, ConfigError, dump_recipe
from config.contrastive_schema import Similarity
from config.objective_schema import MaskedLM
from data.files import sync
from model import save_hf
from tasks.checkpoints import RECIPE, Trained, load_model
from tasks.embedding import Embedder
from tasks.export.card import write_card
from tasks.export.check import check_model, check_tokenizer
from tasks.export.gguf_file import check_decoder, write_gguf
from tasks.export.llama_cpp import check_llama_cpp
from tasks.export.onnx_graph import check_encoder, write_onnx
from tasks.export.sentence import check_sentences, write_sentence_layout
from tasks.export.task_head import fit_head, without_head
from tasks.export.tokenizer import save_tokenizer
from tasks.sentence_layout import Pooling

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest difference of logits, as a share of the largest logit. The same bfloat16 weights are also compared in float32,
to float32's tolerance, which shows the conversion; in bfloat16 the two models round at different places."""


def export(
    source: Path,
    out: Path,
    dtype: str = "float32",
    *,
    pooling: Pooling | None = None,
    dimensions: int | None = None,
    normalize: bool | None = None,
    onnx: bool = False,
    gguf: bool = False,
) -> dict[str, float]:
    """Write the folder `out` and return the differences that its checks measured.

    With a `pooling`, `dimensions` or `normalize` it is an embedding model, without its head. Raises ConfigError if the
    model has no equivalent in a format or a package is missing, CheckpointError if a check fails or the folder cannot be
    written; then there is no `out`.
    """
    with new_folder(out) as folder:
        trained = load_model(source, torch.device("cpu"))
        vectors_only = (pooling, dimensions, normalize) != (None, None, None)
        heads = not vectors_only and not isinstance(trained.objective, Similarity)
        _check_possible(trained, source, onnx=onnx, gguf=gguf)
        trained = fit_head(trained) if heads else without_head(trained)
        sentences = not heads or isinstance(trained.objective, MaskedLM)
        embedder = Embedder(trained, pooling, normalize, dimensions) if sentences else None
        differences = _write_model(folder, trained, dtype, heads=heads)
        if embedder is not None:
            write_sentence_layout(folder, embedder)
            differences["vectors of sentence-transformers"] = check_sentences(folder, embedder)
        if onnx:
            differences["outputs of ONNX"] = write_onnx(folder, trained.model, heads=heads)
        if gguf:
            path = write_gguf(folder, trained, dtype)
            differences["log-probabilities of llama.cpp"] = check_llama_cpp(path, trained, dtype)
        write_card(folder, trained, source, embedder, heads=heads)
        if recipe := trained.trained_by:
            (folder / RECIPE).write_text(dump_recipe(recipe), encoding="utf-8")
    return differences


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name when the block ends; if it fails or is interrupted nothing is left.

    Raises CheckpointError if `out` exists, and for the files that cannot be written.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already: give --out another folder, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        partial.rename(out)
        sync(out.parent)
    except SafetensorError as error:
        raise CheckpointError(f"{out} cannot be written: {error}") from None
    except OSError as error:
        if error.errno is None:  # not the operating system's: a library that could not read a file
            raise
        advice = ": make room or give --out another disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"{out} cannot be written: {error.strerror}{where}{advice}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_possible(trained: Trained, source: Path, *, onnx: bool, gguf: bool) -> None:
    """Raises ConfigError for what cannot be exported, before anything is computed."""
    if trained.recipe and trained.recipe.adapter.name == "houlsby":
        raise ConfigError(
            f"{source} has adapter.name houlsby, whose layers no Hugging Face architecture has and which cannot be merged: "
            "use the run itself, or train with adapter.name=lora"
        )
    if onnx:
        check_encoder(trained.config)
    if gguf:
        check_decoder(trained)


def _write_model(folder: Path, trained: Trained, dtype: str, *, heads: bool) -> dict[str, float]:
    """Weights, config and tokenizer, checked with transformers. Leaves the model in fp32, its weights rounded to `dtype`."""
    model = trained.model.to(getattr(torch, dtype))
    token_ids = save_tokenizer(folder, trained, padded=not heads)
    save_hf(folder, trained.config, model.state_dict(), token_ids=token_ids, heads=heads, objective=trained.objective)
    check_tokenizer(folder, trained)
    what = "logits" if heads else "hidden states"
    return {
        f"{what} in {kind}, of the largest": check_model(folder, model, kind, TOLERANCE[kind], heads=heads)
        for kind in dict.fromkeys((dtype, "float32"))
    }
