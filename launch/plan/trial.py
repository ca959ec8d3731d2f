"""One trial of `--tune`: a real `train.py`, started as a user would, watched through its metrics and stopped in time."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from config.ds_config import DSConfig

TRAIN = Path(__file__).parents[2] / "train.py"
LEAST_STEPS = 3
"""Of a trial, however long they take. The first of them compiles and is not counted."""
LONGEST_START = 900.0
"""Seconds until the first step is done, compiling included."""
PATIENCE = 60.0
"""Seconds that a run gets to finish its step and leave."""
MEASURING = {
    "run.name": "trial",
    "run.resume": "fresh",
    "batch.ramp": "[]",
    "checkpoint.every_steps": 0,
    "validation.every_steps": 0,
    "monitor.log_every_steps": 1,
    "monitor.tensorboard": "false",
    "monitor.wandb": "false",
}
"""Settings of a trial that cost time or leave something behind and say nothing about the speed of a step."""
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|out of memory|MemoryError|can't allocate memory|Cannot allocate memory|std::bad_alloc"
    r"|exitcode *: *-9\b|Signal 9 \(SIGKILL\)"
)


@dataclass(frozen=True)
class Measured:
    outcome: Literal["measured", "out of memory", "failed"]
    tokens_per_second: float = 0.0
    """Median of the steps after the first."""
    memory_gb: float = 0.0
    """Most that metrics.jsonl names: peak of the first rank's GPU, resident memory on a CPU."""
    steps: int = 0
    message: str = ""
    """What a trial that failed said last."""


def run_trial(recipe: str, overrides: dict[str, Any], ds_config: DSConfig, ranks: int, seconds: float) -> Measured:
    """Train for `seconds` after the first step. Raises KeyboardInterrupt after the run was stopped."""
    with tempfile.TemporaryDirectory(prefix="tune-") as folder:
        own = Path(folder) / "ds_config.json"
        own.write_text(json.dumps(ds_config.values))
        settings = {**overrides, **MEASURING, "run.folder": folder, "engine.ds_config": own}
        arguments = [str(TRAIN), recipe, *(f"{name}={value}" for name, value in settings.items())]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        log, metrics = Path(folder) / "log", Path(folder) / "trial" / "metrics.jsonl"
        with log.open("wb") as output, _started([sys.executable, *launcher, *arguments], output) as process:
            stopped = _watch(process, metrics, seconds)
        return _judge(_records(metrics), "" if stopped else log.read_text(errors="replace"), process.returncode)


@contextmanager
def _started(command: list[str], output: Any) -> Iterator[subprocess.Popen]:
    """A process in a session of its own; whatever is left of it is gone at the end, after SIGTERM as after Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()  # train.py finishes its step
        with suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        signal.signal(signal.SIGTERM, before)


def _watch(process: subprocess.Popen, metrics: Path, seconds: float) -> bool:
    """Wait until enough was measured; whether it was. False if the run ended by itself or never came to a step."""
    start, first = time.monotonic(), None
    while process.poll() is None:
        time.sleep(0.1)
        now, steps = time.monotonic(), len(_records(metrics))
        first = first or (now if steps else None)
        if first is None and now - start > LONGEST_START:
            return False
        if first is not None and now - first > seconds and steps >= LEAST_STEPS:
            return True
    return len(_records(metrics)) >= LEAST_STEPS and process.returncode == 0


def _records(metrics: Path) -> list[dict[str, Any]]:
    """Steps that are written completely."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [record for record in map(json.loads, lines) if "loss" in record]


def _judge(records: list[dict[str, Any]], log: str, code: int) -> Measured:
    """`log` is that of a run which ended by itself, empty for one that was stopped."""
    if log or len(records) < 2:
        exhausted = code == -signal.SIGKILL or OUT_OF_MEMORY.search(log)
        lines = [line for line in log.splitlines() if line.strip()]
        return Measured("out of memory" if exhausted else "failed", steps=len(records), message="\n".join(lines[-5:]))
    rates = [record["tokens_per_second"] for record in records[1:]]
    return Measured("measured", median(rates), max(record["memory_gb"] for record in records), len(records))
