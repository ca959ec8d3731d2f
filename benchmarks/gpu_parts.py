"""One part of the GPU measurements, as a process that writes a line of JSON for each thing it finds (see gpu.py)."""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.gpu import Row
from benchmarks.gpu_checks import check_kernels, check_loss, check_parity, time_kernels
from benchmarks.gpu_steps import profile_steps, time_steps

FUNCTIONS: dict[str, Callable[..., Iterator[Row]]] = {
    "kernels": check_kernels,
    "kernel_times": time_kernels,
    "loss": check_loss,
    "parity": check_parity,
    "steps": time_steps,
    "profile": profile_steps,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", help="a name in FUNCTIONS, its argument after a colon")
    parser.add_argument("out", type=Path)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    name, *argument = options.part.split(":")
    with options.out.open("w") as out:
        for row in FUNCTIONS[name](options.smoke, *argument, *options.arguments):
            print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main()
