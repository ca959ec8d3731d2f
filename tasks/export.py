"""Write a trained model as a Hugging Face folder, and prove that transformers computes the same with it."""

import argparse
import shutil
from pathlib import Path

TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}
"""Largest difference of logits, as a share of the largest logit. The same bfloat16 weights are also compared in float32,
to float32's tolerance, which shows the conversion; in bfloat16 the two models round at different places."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of the weights (default float32)")


def run(options: argparse.Namespace) -> int:
    differences = export(options.model, options.out, options.dtype)
    print(f"{options.out}: transformers loads it and gives the same logits and tokens; largest difference of logits:")
    for what, difference in differences.items():
        print(f"  {what}: {difference:.1e} of the largest")
    return 0


def export(source: Path, out: Path, dtype: str = "float32") -> dict[str, float]:
    """Write the folder `out` and return the differences that its check measured.

    It is written beside and renamed after the check: a wrong model never has the name `out`. Raises ConfigError if
    Hugging Face has no such architecture or transformers is missing, CheckpointError if the check fails.
    """
    import torch

    from config import CheckpointError
    from model import save_hf
    from tasks.checkpoints import load_model
    from tasks.hf_check import check_model, check_tokenizer
    from tasks.hf_tokenizer import save_tokenizer

    if out.exists():
        raise CheckpointError(f"{out} exists already: give --out another folder, or remove it")
    trained = load_model(source, torch.device("cpu"))
    model, tokenizer, config = trained.model.to(getattr(torch, dtype)), trained.tokenizer, trained.config
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        token_ids = save_tokenizer(partial, tokenizer, config)
        save_hf(partial, config, model.state_dict(), token_ids=token_ids)
        check_tokenizer(partial, tokenizer, config.family)
        differences = {
            kind: check_model(partial, model, kind, TOLERANCE[kind]) for kind in dict.fromkeys((dtype, "float32"))
        }
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return differences
