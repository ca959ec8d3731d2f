"""Predicted against measured memory of short real runs: python -m benchmarks.memory [--only WORDS ...]

Each run is one or two processes of its own (memory_run.py), on the GPU where there is one. Compared with
config/memory.py by part: weights, optimiser, what the forward pass keeps for the backward pass, all tensors at the
fullest moment, and the whole process (on a GPU what its allocator reserves). On a CPU a run is made twice, once for the
process's peak and once with its tensors counted. Then the plan of runs whose memory was published.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.memory_cases import CASES, ROOT, Case
from benchmarks.memory_published import published_table
from config import load_recipe
from config.activations import Activations
from config.block_memory import FP32, Arithmetic
from config.derive import derive
from config.device import DeviceInfo
from config.ds_json import deepspeed_json
from config.memory import estimate_memory
from config.zero_memory import States

PARTS = ("weights", "optimiser", "kept by forward", "all tensors", "process")
BESIDE_TENSORS = ("fragmentation", "process", "CUDA and NCCL")

Bytes = dict[str, int]


def run_case(case: Case, overrides: list[str], folder: Path, count: bool) -> dict[str, Any]:
    """What rank 0 found. Raises RuntimeError with the end of its output if it fails."""
    out = folder / f"found_{count}"
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={case.ranks}", "-m"] * (case.ranks > 1)
    module = ["benchmarks.memory_run", str(out), case.recipe, *overrides, *["--count"] * count]
    finished = subprocess.run(
        [sys.executable, "-m", *launcher, *module],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if not out.exists():
        raise RuntimeError(finished.stdout[-2000:])
    return json.loads(out.read_text())


def measured(phases: list[tuple[str, int, int]], counted: dict[str, Any], process: int) -> Bytes:
    """By part, of the last step. What the records still hold when the run has ended, but no tensor does, was freed unseen."""
    unseen = max(phases[-1][2] - counted["alive"], 0)
    begun = max(i for i, (phase, *_) in enumerate(phases) if phase == "forward")
    return {
        "weights": counted["weights"],
        "optimiser": counted["optimiser"],
        "kept by forward": phases[begun][2] - phases[begun - 1][2],
        "all tensors": max(peak for phase, peak, _ in phases if phase != "start") - unseen,
        "process": process,
    }


def predicted(case: Case, overrides: list[str], found: dict[str, Any]) -> Bytes:
    config = load_recipe(case.recipe, overrides)
    derived = derive(config, case.ranks)
    device = DeviceInfo(found["kind"], "this device", fast_bf16=True, fp16=True)
    ds_json = deepspeed_json(config, derived, found["precision"], device)
    memory = estimate_memory(config, derived, ds_json, device=device, compiled=found["compiled"])
    states = States(config, derived, ds_json)
    product = 2 if states.computes_low else FP32
    activations = Activations(config, Arithmetic(product, states.number, found["kind"] == "gpu", found["compiled"]))
    total = sum(memory.device.values())
    beside = sum(memory.device.get(part, 0) for part in BESIDE_TENSORS)
    context = memory.device.get("CUDA and NCCL", 0)
    return {
        "weights": states.weights(),
        "optimiser": states.optimizer(),
        "kept by forward": activations.kept() + activations.head_kept() + states.weight_copies(),
        "all tensors": total - beside,
        "process": total - context,
    }


def compare(case: Case) -> tuple[Bytes, Bytes]:
    """Predicted and measured, by part."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = case.overrides(folder)
        counted = run_case(case, overrides, folder, count=True)
        plain = counted if counted["kind"] == "gpu" else run_case(case, overrides, folder, count=False)
        return predicted(case, overrides, counted), measured(counted["phases"], counted, plain["process"])


def summary(part: str, errors: list[float]) -> str:
    sizes = [abs(error) for error in errors]
    near = sum(size <= 0.1 for size in sizes)
    return f"{part}: median {median(sizes):.1%}, worst {max(sizes):.1%}, {near} of {len(sizes)} within 10 %"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="texts of which a run's name must hold one")
    options = parser.parse_args(arguments)
    errors: dict[str, list[float]] = {part: [] for part in PARTS}
    print(f"| predicted / measured, MB | {' | '.join(PARTS)} |\n|---{'|--:' * len(PARTS)}|")
    for case in CASES:
        if not any(text in case.name for text in options.only):
            continue
        try:
            plan, found = compare(case)
        except RuntimeError as error:  # two ranks need two GPUs
            print(f"{case.name} failed:\n{error}", file=sys.stderr, flush=True)
            continue
        for part in PARTS:
            errors[part].append(plan[part] / found[part] - 1)
        cells = (f"{plan[part] / 1e6:,.0f} / {found[part] / 1e6:,.0f} ({errors[part][-1]:+.0%})" for part in PARTS)
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    print("", *(summary(part, found) for part, found in errors.items() if found), "", published_table(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
