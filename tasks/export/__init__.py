"""Write a trained model as a Hugging Face folder, and prove that those who read it compute the same with it."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.checkpoints import Trained
    from tasks.sentence_layout import Pooling

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest difference of logits, as a share of the largest logit. The same bfloat16 weights are also compared in float32,
to float32's tolerance, which shows the conversion; in bfloat16 the two models round at different places."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--pooling",
        choices=("cls", "mean", "last"),
        help="export an embedding model, without its heads (default for one trained by a contrastive objective: its own)",
    )
    parser.add_argument("--dimensions", type=int, help="of the vectors: the first ones, for models trained that way")
    parser.add_argument("--onnx", action="store_true", help="of an encoder, onnx/model.onnx (fp32), too")
    parser.add_argument("--gguf", action="store_true", help="of a decoder, model.gguf for llama.cpp, too")


def run(options: argparse.Namespace) -> int:
    from tasks.export.check import import_transformers

    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    differences = export(
        options.model,
        options.out,
        options.dtype,
        pooling=options.pooling,
        dimensions=options.dimensions,
        onnx=options.onnx,
        gguf=options.gguf,
    )
    print(f"{options.out}: those who read it compute the same logits and tokens; largest differences:")
    for what, difference in differences.items():
        print(f"  {what}: {difference:.1e}")
    return 0


def export(
    source: Path,
    out: Path,
    dtype: str = "float32",
    *,
    pooling: "Pooling | None" = None,
    dimensions: int | None = None,
    onnx: bool = False,
    gguf: bool = False,
) -> dict[str, float]:
    """Write the folder `out` and return the differences that its checks measured.

    It is written beside and renamed after the checks: a wrong model never has the name `out`. Raises ConfigError if the
    model has no equivalent in a format or a package is missing, CheckpointError if a check fails.
    """
    import torch

    from config import CheckpointError, ConfigError
    from config.contrastive_schema import Similarity
    from config.supervised_schema import HEADED
    from tasks.checkpoints import load_model
    from tasks.embedding import Embedder
    from tasks.export.card import write_card
    from tasks.export.gguf_file import check_decoder, write_gguf
    from tasks.export.llama_cpp import check_llama_cpp
    from tasks.export.onnx_graph import check_encoder, write_onnx
    from tasks.export.sentence import check_sentences, write_sentence_layout

    if out.exists():
        raise CheckpointError(f"{out} exists already: give --out another folder, or remove it")
    trained = load_model(source, torch.device("cpu"))
    if trained.recipe and trained.recipe.adapter.name == "houlsby":
        raise ConfigError(
            f"{source} has adapter.name houlsby, whose layers no Hugging Face architecture has and which cannot be merged: "
            "use the run itself, or train with adapter.name=lora"
        )
    if isinstance(trained.objective, HEADED):
        raise ConfigError(
            f"{source} was trained by objective {trained.objective.name}: only models with the head of a language model, "
            "and embedding models, can be exported"
        )
    heads = pooling is None and dimensions is None and not isinstance(trained.objective, Similarity)
    if onnx:
        check_encoder(trained.config)
    if gguf:
        check_decoder(trained)
    sentences = not heads or trained.config.family == "bert"
    embedder = Embedder(trained, pooling, dimensions=dimensions) if sentences else None
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        differences = _write_folder(partial, trained, dtype, heads=heads)
        if embedder is not None:
            write_sentence_layout(partial, embedder)
            differences["vectors of sentence-transformers"] = check_sentences(partial, embedder)
        if onnx:
            differences["hidden states of ONNX"] = write_onnx(partial, trained.model)
        if gguf:
            differences["log-probabilities of llama.cpp"] = check_llama_cpp(
                write_gguf(partial, trained, dtype), trained, dtype
            )
        write_card(partial, trained, source, embedder, heads=heads)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return differences


def _write_folder(folder: Path, trained: "Trained", dtype: str, *, heads: bool) -> dict[str, float]:
    """Weights, config and tokenizer, checked with transformers. Leaves the model in fp32, its weights rounded to `dtype`."""
    import torch

    from model import save_hf
    from tasks.export.check import check_model, check_tokenizer
    from tasks.export.tokenizer import save_tokenizer

    model = trained.model.to(getattr(torch, dtype))
    token_ids = save_tokenizer(folder, trained, padded=not heads)
    save_hf(folder, trained.config, model.state_dict(), token_ids=token_ids, heads=heads)
    check_tokenizer(folder, trained)
    what = "logits" if heads else "hidden states"
    return {
        f"{what} in {kind}, of the largest": check_model(folder, model, kind, TOLERANCE[kind], heads=heads)
        for kind in dict.fromkeys((dtype, "float32"))
    }
