"""How a cost grows: what a piece of code did, counted, and the exponent with which it grows along an axis."""

import builtins
import io
import math
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from engine import state

FILE_FUNCTIONS = [(builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "lstat"), (state, "safe_open")]
LIMITS = {"O(log n)": 0.2, "O(n)": 1.1}
"""Largest exponent of each bound. That of log n between 100 and 1,000 is 0.18."""
SMALLEST_MEMORY = 1 << 20
SHORTEST_MS = 2.0
FEWEST_FILES = 8
"""A step of four rows may open as many shards, if there are."""


@dataclass(frozen=True)
class Cost:
    """What one rank did."""

    milliseconds: float
    calls: int
    """Python and C functions called: the same in every repetition."""
    files: int
    """Files opened or asked for (open, stat)."""
    memory: int = 0
    """Most bytes held at once by Python and numpy; mapped files are not among them."""
    exchanges: int = 0
    """Collectives."""
    received: int = 0
    """Bytes that other ranks sent."""


@dataclass
class Row:
    """A cost along an axis."""

    what: str
    axis: str
    bound: str
    """One of LIMITS."""
    costs: dict[int, Cost] = field(default_factory=dict)

    @property
    def exponents(self) -> dict[str, float]:
        """Of each kind of cost; what is lower than matters counts as that."""
        lowest = {
            "calls": 1,
            "files": FEWEST_FILES,
            "memory": SMALLEST_MEMORY,
            "exchanges": 1,
            "received": 1,
            "milliseconds": SHORTEST_MS,
        }
        return {
            kind: exponent({n: max(getattr(cost, kind), least) for n, cost in self.costs.items()})
            for kind, least in lowest.items()
        }

    @property
    def holds(self) -> bool:
        """Whether every count stays within the bound. Times are shown: a busy machine must not change a verdict."""
        return max(value for kind, value in self.exponents.items() if kind != "milliseconds") <= LIMITS[self.bound]


def exponent(values: dict[int, float]) -> float:
    """Slope of log(value) over log(n), by least squares over the upper half of the axis, where constants hide it least."""
    points = sorted(values.items())[(len(values) - 1) // 2 :]
    x, y = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def table(rows: list[Row]) -> str:
    """Markdown, a line for each row. Cells: milliseconds · calls · files · memory, or of an exchange milliseconds · calls ·
    files · collectives · bytes received."""
    lines = ["| one rank's | by number of | smallest | middle | largest | exponents: counts, ms | bound | holds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        numbers = sorted(row.costs)
        shown = [numbers[0], numbers[len(numbers) // 2], numbers[-1]]
        cells = " | ".join(f"{_count(n)}: {_in_words(row.costs[n])}" for n in shown)
        *counts, time_ = row.exponents.values()
        verdict = "yes" if row.holds else "**no**"
        lines.append(
            f"| {row.what} | {row.axis} | {cells} | {max(counts):.2f}, {time_:.2f} | {row.bound} | {verdict} |"
        )
    return "\n".join(lines)


def measure(function: Callable[[], Any], before: Callable[[], Any] = lambda: None, repeats: int = 3) -> Cost:
    """The cost of a call; `before` is called ahead of each and not counted. The time is the shortest of `repeats`."""
    times = []
    for _ in range(repeats):
        before()
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    before()
    with watching_files(), counting() as counted:
        function()
    before()
    tracemalloc.start()
    function()
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Cost(1e3 * min(times), counted["calls"], counted["files"], memory)


class _Files(threading.local):
    seen = 0


_files = _Files()


@contextmanager
def watching_files() -> Iterator[None]:
    """Inside the block each thread's file functions are counted."""
    with ExitStack() as patches:
        for module, name in FILE_FUNCTIONS:
            patches.enter_context(patch.object(module, name, _counted(getattr(module, name))))
        yield


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def counted_function(*arguments: Any, **options: Any) -> Any:
        _files.seen += 1
        return function(*arguments, **options)

    return counted_function


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Counts what this thread does inside the block: "calls" of functions, and "files" opened or asked for."""
    counted, seen = {"calls": 0, "files": 0}, _files.seen

    def count_call(frame: Any, event: str, argument: Any) -> None:
        counted["calls"] += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        yield counted
    finally:
        sys.setprofile(None)
        counted["files"] = _files.seen - seen


def _count(number: int) -> str:
    power = round(math.log10(number))
    return f"10^{power}" if power > 5 and 10**power == number else f"{number:,}"


def _in_words(cost: Cost) -> str:
    words = f"{cost.milliseconds:,.1f} ms · {cost.calls:,} · {cost.files:,}"
    return (
        f"{words} · {cost.exchanges:,} · {cost.received:,} B"
        if cost.exchanges
        else f"{words} · {cost.memory / 1e6:,.1f} MB"
    )
