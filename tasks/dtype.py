"""The numbers that a trained model computes with."""

import argparse

DTYPES = ("float32", "bfloat16", "float16")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="weights and products, on a GPU too (default float32). bfloat16: half the memory, and faster on GPUs and on "
        "CPUs with AMX; float16: GPUs only. What comes out is float32",
    )
