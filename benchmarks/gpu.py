"""Check and measure everything on one GPU in under ten minutes: python -m benchmarks.gpu --out FOLDER

Kernels against the reference, the chunked loss against the plain one, DeepSpeed against plain PyTorch; then training
steps of a 124M and a 1.3B model with each kernel, compiled or not, and where the GPU's time goes. Each part is a process
with a time limit (gpu_parts.py). What a part found before its limit is kept. --smoke runs tiny sizes, on a CPU too.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PARTS = {
    "loss": 25,
    "parity": 45,
    "kernels": 80,
    "kernel_times": 45,
    "steps:gpt2_124m": 190,
    "steps:llama_1.3b": 140,
    "profile": 45,
}
"""Seconds that each part may take."""
LAST_WORDS = 15
"""Lines of a failed part's output that are shown."""

Row = dict[str, Any]


def run_part(name: str, seconds: float, smoke: bool, *arguments: str) -> tuple[list[Row], str]:
    """What a part found, and how it ended if not well."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log"
        command = [sys.executable, "-m", "benchmarks.gpu_parts", name, str(rows), *arguments]
        with log.open("w") as output:
            process = subprocess.Popen(
                command + ["--smoke"] * smoke, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code, ended = process.wait(seconds), ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # compilers that it started, too
                code, ended = process.wait(), f"stopped at its limit of {seconds:g} s"
        if code and not ended:
            ended = "failed:\n" + "\n".join(log.read_text().splitlines()[-LAST_WORDS:])
        found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    return found, ended


def best_variant(rows: list[Row]) -> str:
    """Name of the fastest way to take a step on whole rows."""
    whole = [row for row in rows if "tokens/s" in row and "documents" not in row["variant"]]
    return max(whole, key=lambda row: row["tokens/s"])["variant"] if whole else ""


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """One table a part. Its columns are all keys of its rows, in the order of their first appearance."""
    lines = []
    for name, result in results.items():
        lines += [f"## {name}", "", f"{result['seconds']:.0f} s {result['ended']}".strip(), ""]
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
        if columns:
            lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in result["rows"]]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value).replace("|", "/").replace("\n", " ")
    return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.3g}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for results.json and results.md")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), help="parts to run")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does every part run?")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for name in options.only:
        best = best_variant(results.get("steps:gpt2_124m", {}).get("rows", []))
        start = time.perf_counter()
        rows, ended = run_part(name, PARTS[name], options.smoke, *([best] if name == "profile" and best else []))
        results[name] = {"rows": rows, "ended": ended, "seconds": time.perf_counter() - start}
        print(f"{name}: {len(rows)} rows in {results[name]['seconds']:.0f} s {ended}", flush=True)
        (options.out / "results.json").write_text(json.dumps(results, indent=1))
        (options.out / "results.md").write_text(markdown(results))
    print(f"\n{markdown(results)}")
    return int(any(result["ended"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
