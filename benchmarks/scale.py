"""What a rank's host does at a size that is not at hand: python -m benchmarks.scale

One process takes the place of one rank among up to 1,024, or of all of them as threads, over corpora of up to 10^13
tokens in 10,000 shards whose files are holes. The code is the code that trains; only collectives are replaced, by
counted ones. Each line grows one thing and leaves the others alone.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.growth import Row, measure, table
from benchmarks.sharded_state import checkpoint_rows
from benchmarks.sparse_corpus import VOCAB_SIZE, write_sparse_corpus
from config import RunConfig
from config.batch_ramp import batch_size_at
from config.derive import derive
from config.device import DeviceInfo
from config.ds_json import deepspeed_json
from config.plan import plan
from data.stream import Stream
from data.training import open_training
from engine.monitor import forget_after
from engine.runs import run_documents

ROW_LENGTH = 2048
ROWS_EACH = 4
"""Rows of a rank in a step."""
SHARD_TOKENS = 10**9
SHARDS_EACH = 10
"""Of each dataset, where their number grows."""


class Sizes(NamedTuple):
    """The axes: each from small to large."""

    ranks: tuple[int, ...] = (1, 8, 64, 256, 1_024)
    tokens: tuple[int, ...] = (10**9, 10**10, 10**11, 10**12, 10**13)
    shards: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    datasets: tuple[int, ...] = (1, 10, 100, 1_000)
    phases: tuple[int, ...] = (1, 10, 100, 1_000)
    steps: tuple[int, ...] = (100, 1_000, 10_000, 100_000)


class Case(NamedTuple):
    n: int
    config: RunConfig
    ranks: int
    tokens: int


def scale_config(paths: list[str], ranks: int = 1, ramp: int = 0, **data: Any) -> RunConfig:
    """A recipe of equal work for each rank, with `ramp` phases before the full batch."""
    rows = ROWS_EACH * ranks
    phases = [{"until_tokens": 10**6 * (i + 1), "global_batch_size": rows * (i + 1)} for i in range(ramp)]
    return RunConfig.model_validate(
        {
            "run": {"name": "scale"},
            "data": {
                "datasets": [{"path": path} for path in paths],
                "row_length": ROW_LENGTH,
                "prefetch_steps": 0,
                **data,
            },
            "model": {
                "vocab_size": VOCAB_SIZE,
                "num_layers": 2,
                "hidden_size": 64,
                "num_heads": 2,
                "max_positions": ROW_LENGTH,
            },
            "batch": {"global_batch_size": rows * (ramp + 1), "micro_batch_size": ROWS_EACH, "ramp": phases},
            "optimizer": {"lr": 1e-3},
            "schedule": {"steps": 1_000_000},
        }
    )


def open_as(config: RunConfig, rank: int, ranks: int) -> Stream:
    """What train.py opens on a rank before the first step: the stream, and the texts that a checkpoint carries."""
    stream, tokenizer = open_training(config, rank, ranks)
    run_documents(config, tokenizer)
    return stream


def stream_rows(axis: str, start_bound: str, cases: Iterator[Case]) -> list[Row]:
    """Start, resume and one step of the last rank's stream."""
    rows = Row("start", axis, start_bound), Row("first batch at 99 %", axis, "O(log n)"), Row("step", axis, "O(log n)")
    for case in cases:
        for row, cost in zip(rows, _stream_costs(case), strict=True):
            row.costs[case.n] = cost
    return list(rows)


def _stream_costs(case: Case) -> Iterator[Any]:
    def touch_manifests() -> None:  # one that has not changed is not read again in a process
        for dataset in case.config.data.datasets:
            os.utime(Path(dataset.path) / "manifest.json")

    yield measure(lambda: open_as(case.config, case.ranks - 1, case.ranks), touch_manifests, repeats=1)
    stream = open_as(case.config, case.ranks - 1, case.ranks)
    size = case.config.batch.global_batch_size
    late = case.tokens * 99 // 100 // ROW_LENGTH // size * size
    yield measure(lambda: next(stream.steps(late)))
    cursors = count(late, size)
    yield measure(lambda: stream.step(next(cursors)))  # other rows each time, so perhaps other shards


def corpus_cases(root: Path, sizes: Sizes) -> Iterator[list[Row]]:
    """Rows of everything that reads corpora."""
    largest, tokens = max(sizes.shards), max(sizes.shards) * SHARD_TOKENS
    corpora = {n: write_sparse_corpus(root / f"shards_{n}", n, n * SHARD_TOKENS) for n in sizes.shards}
    whole = corpora[largest]
    by_shards = (Case(n, scale_config([path]), 1, n * SHARD_TOKENS) for n, path in corpora.items())
    yield stream_rows("shards", "O(n)", by_shards)
    yield stream_rows("ranks", "O(log n)", (Case(n, scale_config([whole], n), n, tokens) for n in sizes.ranks))
    by_tokens = ((n, write_sparse_corpus(root / f"tokens_{n}", 100, n)) for n in sizes.tokens)
    yield stream_rows("tokens, 100 shards", "O(log n)", (Case(n, scale_config([path]), 1, n) for n, path in by_tokens))
    names = [root / f"dataset_{number}" for number in range(max(sizes.datasets))]
    paths = [write_sparse_corpus(name, SHARDS_EACH, SHARDS_EACH * 10**7) for name in names]
    by_datasets = (Case(n, scale_config(paths[:n], 16), 16, n * SHARDS_EACH * 10**7) for n in sizes.datasets)
    yield stream_rows(f"datasets of {SHARDS_EACH} shards", "O(n)", by_datasets)
    yield stream_rows("phases of a mixture", "O(n)", (_scheduled(n, paths[:2]) for n in sizes.phases))
    yield [cursor_row(scale_config([whole]), tokens)]


def _scheduled(n: int, paths: list[str]) -> Case:
    phases = [{"from_tokens": 10**5 * (i + 1), "weights": [1, i + 1]} for i in range(n)]
    return Case(n, scale_config(paths, mixture_schedule=phases), 1, 10**5 * n)


def cursor_row(config: RunConfig, tokens: int) -> Row:
    row, stream = Row("step", "cursor (samples done)", "O(log n)"), open_as(config, 0, 1)
    for n in (10**power for power in range(2, len(str(tokens // ROW_LENGTH)))):
        row.costs[n] = measure(partial(stream.step, n // ROWS_EACH * ROWS_EACH))
    return row


def arithmetic_rows(sizes: Sizes) -> list[Row]:
    """What is computed from the recipe alone."""
    device = DeviceInfo("gpu", "a GPU", fast_bf16=True, fp16=True)

    def planned(ranks: int) -> None:
        config = scale_config(["corpus"], ranks)
        derived = derive(config, ranks)
        str(plan(config, derived, deepspeed_json(config, derived, "bf16", device)))

    derived, ramp = (
        Row("derive and plan", "ranks", "O(log n)"),
        Row("batch size of a step", "phases of a ramp", "O(log n)"),
    )
    derived.costs = {n: measure(partial(planned, n)) for n in sizes.ranks}
    for n in sizes.phases:
        batch = scale_config(["corpus"], ramp=n).batch
        ramp.costs[n] = measure(partial(batch_size_at, batch, 10**12, ROW_LENGTH))
    return [derived, ramp]


def metrics_row(root: Path, sizes: Sizes) -> Row:
    """The main rank drops what a resumed run does again from metrics.jsonl."""
    row, path = Row("start: metrics.jsonl", "steps done", "O(n)"), root / "metrics.jsonl"
    for n in sizes.steps:
        path.write_text("".join(f'{{"step": {step}, "loss": 2.5, "seconds": 0.5}}\n' for step in range(1, n + 1)))
        row.costs[n] = measure(partial(forget_after, path, n - 10), repeats=1)
    return row


def all_rows(root: Path, sizes: Sizes, say: Callable[[str], None] = lambda _: None) -> Iterator[Row]:
    for rows in corpus_cases(root, sizes):
        say(f"{rows[0].axis}: done")
        yield from rows
    yield from arithmetic_rows(sizes)
    yield from checkpoint_rows(root, sizes.ranks)
    yield metrics_row(root, sizes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to put the sparse files, 1 GB of it (default: the temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        rows = list(all_rows(Path(root), Sizes(), say=lambda line: print(line, file=sys.stderr, flush=True)))
    print(table(rows))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
