"""How fast the stream is beside other loaders: python -m benchmarks.stream

All read the same shard of synthetic text, in batches of 16 rows of 2,048 tokens as int64, in one process each. Every
round runs each loader once, over two epochs or, with --cold, one; the table shows medians over the rounds.
Mtokens/s is of the last epoch; "memory" leaves mapped files out; "start-up" and "resume" are times to the first batch.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_peers import BATCH, CORPUS_SHARD, LOADERS, ROW_LENGTH, VOCAB_SIZE
from data.manifest import Manifest, ShardEntry
from data.shard import ShardWriter

MEAN_DOCUMENT = 993
COLUMNS = (
    "loader",
    "Mtokens/s",
    "Groundwork / it",
    "first pass",
    "start-up",
    "resume at 90 %",
    "memory",
    "import",
)


def write_corpus(folder: Path, tokens: int) -> None:
    """A prepared dataset of one shard: ids with Zipf's distribution, in documents of exponential length."""
    random = np.random.default_rng(0)
    with ShardWriter(folder / CORPUS_SHARD, np.dtype("<u2")) as shard:
        while shard.token_count < tokens:
            ids = (VOCAB_SIZE ** random.random(4_000_000, np.float32)).astype(np.uint16) - 1
            lengths = 1 + random.exponential(MEAN_DOCUMENT, len(ids) // MEAN_DOCUMENT).astype(np.int64)
            for document in np.split(ids, np.cumsum(lengths)):
                if len(document) and shard.token_count < tokens:
                    shard.add(document[: tokens - shard.token_count])
    entry = ShardEntry.of(folder / CORPUS_SHARD, text_bytes=0)
    Manifest(
        tokens=entry.tokens, documents=entry.documents, text_bytes=0, vocab_size=VOCAB_SIZE, dtype="uint16", eod_id=0,
        tokenizer_fingerprint="", sources=(), settings={}, dropped={}, splits={"train": (entry,), "valid": ()},
    ).save(folder)  # fmt: skip


def run_loader(name: str, folder: Path, batches: int, passes: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream_peers", name, str(folder), str(batches), str(passes)]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"{name} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def drop_from_page_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def median(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(result[key] for result in rounds)


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """A Markdown table, one line per loader."""
    for rounds in results.values():
        for result in rounds:
            result.update({"first": result["rates"][0], "warm": result["rates"][-1]} if "rates" in result else {})
    ours = median(results["Groundwork"], "warm")
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for name, rounds in results.items():
        if "missing" in rounds[0]:
            lines.append(f"{name} | not installed ({rounds[0]['missing']})" + " | " * (len(COLUMNS) - 2))
            continue
        value = {key: median(rounds, key) for key in ("warm", "first", "start", "resume", "memory", "import")}
        lines.append(
            f"{name} | {value['warm'] / 1e6:,.1f} | {ours / value['warm']:.2f} | {value['first'] / 1e6:,.1f} | "
            f"{value['start'] * 1e3:,.1f} ms | {value['resume'] * 1e3:,.1f} ms | {value['memory']:,.0f} MB | {value['import']:.1f} s"
        )
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200_000_000, help="size of the corpus (default 200 million)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per loader (default 3)")
    parser.add_argument("--cold", action="store_true", help="drop the shard from the page cache first; one pass")
    options = parser.parse_args()
    batches, passes = (options.tokens - 1) // ROW_LENGTH // BATCH, 1 if options.cold else 2
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in LOADERS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, options.tokens)
        for _ in range(options.rounds):
            for loader, rounds in results.items():
                if options.cold:
                    drop_from_page_cache(folder / f"{CORPUS_SHARD}.bin")
                rounds.append(run_loader(loader, folder, batches, passes))
    print(table(results))


if __name__ == "__main__":
    main()
