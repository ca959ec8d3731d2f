"""Write a trained model as a Hugging Face folder, and prove that those who read it compute the same with it."""

import argparse
from pathlib import Path

DTYPES = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="folder of a run, of a checkpoint, or Hugging Face's")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    parser.add_argument(
        "--pooling",
        choices=("cls", "mean", "last"),
        help="export an embedding model, without its heads (default for one trained by a contrastive objective: its own)",
    )
    parser.add_argument("--dimensions", type=int, help="of the vectors: the first ones, for models trained that way")
    parser.add_argument("--no-normalize", action="store_true", help="vectors as they are, not of length 1")
    parser.add_argument("--onnx", action="store_true", help="of an encoder, onnx/model.onnx (fp32), too")
    parser.add_argument("--gguf", action="store_true", help="of a decoder, model.gguf for llama.cpp, too")


def run(options: argparse.Namespace) -> int:
    from tasks.export.check import import_transformers
    from tasks.export.folder import export

    transformers = import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    differences = export(
        options.model,
        options.out,
        options.dtype,
        pooling=options.pooling,
        dimensions=options.dimensions,
        normalize=False if options.no_normalize else None,
        onnx=options.onnx,
        gguf=options.gguf,
    )
    print(f"{options.out}: those who read it compute the same; largest differences:")
    for what, difference in differences.items():
        print(f"  {what}: {difference:.1e}")
    return 0
