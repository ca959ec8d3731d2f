"""Requests per second of `tasks serve` under load from the `openai` client, with and without batching, beside
sentence-transformers behind a plain FastAPI route with the same weights.

python -m benchmarks.serving [--only tiny small decoder] [--concurrency 1 8 32 128] [--characters 1500] [--dtype bfloat16]
python -m benchmarks.serving --soak 10    # minutes of mixed load on one server; its memory is watched

Servers have the first core and one thread, the client has the last core. On a machine with one core they share it.
"""

import argparse
import json
import os
import statistics
import subprocess
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.serving_models import ENCODERS, mixed_texts, save_models
from benchmarks.serving_process import PYTHON, Server, running
from tasks.dtype import add_dtype

TASKS = (*PYTHON, "-m", "tasks", "serve")
PEERS = {
    "embeddings": {
        "Groundwork": TASKS,
        "Groundwork, one text a pass": (*TASKS, "--max-batch-tokens", "1"),
        "sentence-transformers, plain route": (*PYTHON, "-m", "benchmarks.serving_peer"),
    },
    "completions": {"Groundwork": TASKS, "Groundwork, one row at a time": (*TASKS, "--max-batch-rows", "1")},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[*ENCODERS, "decoder"], choices=[*ENCODERS, "decoder"])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--characters", type=int, default=1500, help="of each text at most; of a prompt, 100 at most")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="interleaved repeats, put together")
    add_dtype(parser)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="watch the memory of one server instead")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        if options.soak:
            from benchmarks.serving_soak import soak

            save_models(Path(folder), ["decoder"])
            soak(Path(folder) / "decoder", options.soak)
            return
        save_models(Path(folder), options.only)
        for name in options.only:
            compare(Path(folder) / name, options)


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Print a table of all peers at every concurrency. A cell: requests (of a decoder tokens) per second; median and 99th
    percentile of milliseconds; the server's milliseconds of CPU for a request; the client's share of its core."""
    kind = "completions" if folder.name == "decoder" else "embeddings"
    characters = min(options.characters, 100) if kind == "completions" else options.characters
    results: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                running((*command, str(folder), "--port", "0", "--dtype", options.dtype), first_core())
            )
            for name, command in PEERS[kind].items()
        }
        client = stack.enter_context(Client())
        if kind == "embeddings":
            largest = difference(folder.name, list(servers.values()))
            print(f"{folder.name}: largest difference between their vectors {largest:.1e}")
        for _ in range(options.rounds):
            for concurrency in options.concurrency:
                for name, server in servers.items():
                    task = {"url": server.url, "model": folder.name, "kind": kind, "characters": characters}
                    times = {"concurrency": concurrency, "seconds": options.seconds, "warmup": 1}
                    before = server.cpu_seconds()
                    result = client.ask({**task, **times})
                    result["cpu_seconds"] = server.cpu_seconds() - before
                    results.setdefault((name, concurrency), []).append(result)
    print_table(folder.name, results, options)


def print_table(model: str, results: dict[tuple[str, int], list[dict[str, Any]]], options: argparse.Namespace) -> None:
    writes = model == "decoder"
    print(f"| {model} | " + " | ".join(f"{concurrency} at a time" for concurrency in options.concurrency) + " |")
    print("| --- " * (len(options.concurrency) + 1) + "|")
    total = options.seconds * options.rounds
    for name in dict.fromkeys(name for name, _ in results):
        cells = []
        for concurrency in options.concurrency:
            rounds = results[name, concurrency]
            done = [request for result in rounds for request in result["done"]]
            waited = [1000 * request["first" if writes else "seconds"] for request in done]
            speed = sum(request["tokens"] if writes else 1 for request in done) / total
            cost = 1000 * sum(result["cpu_seconds"] for result in rounds) / max(1, sum(r["all"] for r in rounds))
            share = statistics.mean(result["client_share"] for result in rounds)
            failed = sum(result["failed"] for result in rounds)
            cells.append(
                f"{speed:,.0f} · {quantile(waited, 50):,.0f} · {quantile(waited, 99):,.0f} · {cost:,.1f} · {share:.0%}"
                + (f" · {failed} FAILED" if failed else "")
            )
        print(f"| {name} | " + " | ".join(cells) + " |")


def quantile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else float("nan")


def difference(model: str, servers: list[Server]) -> float:
    """Between the vectors that servers give for 256 texts, by which they have compiled products of their lengths."""
    import numpy as np
    from openai import OpenAI

    answers = []
    for server in servers:
        client, texts = OpenAI(base_url=f"{server.url}/v1", api_key="none"), mixed_texts(256)
        answers.append([entry.embedding for entry in client.embeddings.create(model=model, input=texts).data])
    return float(max(np.abs(np.subtract(answer, answers[0])).max() for answer in answers))


class Client:
    """The process that sends load."""

    def __enter__(self) -> "Client":
        command = [*PYTHON, "-m", "benchmarks.serving_client"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self.process.pid, {max(os.sched_getaffinity(0))})
        return self

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        print(json.dumps(task), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def first_core() -> int:
    return min(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
