"""Units over processes. Each process reads, encodes and writes its own units; nothing passes through the parent."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from config import DataError
from data.chunks import Advance
from data.documents import Unit
from data.unit import Job, write_unit

POLL_SECONDS = 0.2
WORTH_A_WORKER = 2 << 20
"""Source bytes that take about as long as starting a process."""

_run_here: Callable[[int, Unit], None]
"""In a worker process: writes one unit."""


class Stopped(Exception):
    """The parent asked the workers to stop."""


def run_units(todo: Mapping[int, Unit], job: Job, workers: int, show: Callable[[int], None]) -> None:
    """Write all units; `show` is told how many source bytes are done.

    Raises what a unit raised, after the other workers have stopped; finished units stay. One worker is this process.
    """
    sizes = [unit.size for unit in todo.values()]
    worth = 1 + sum(sizes) // WORTH_A_WORKER if all(sizes) else workers
    workers = min(workers, len(todo), worth)
    if workers > 1:
        _run_in_pool(todo, job, workers, show)
    elif todo:
        _run_alone(todo, job, show)


def _run_alone(todo: Mapping[int, Unit], job: Job, show: Callable[[int], None]) -> None:
    encoding = job.make_encoder()
    done = 0

    def add(size: int) -> None:
        nonlocal done
        done += size
        show(done)

    for number, unit in todo.items():
        with _exactly(unit.size, add) as advance:
            write_unit(number, unit, job, encoding, advance)


def _run_in_pool(todo: Mapping[int, Unit], job: Job, workers: int, show: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("spawn")
    done, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (job, done, stop))
    try:
        with _interrupts_held():
            pending = {pool.submit(_run_unit, number, unit) for number, unit in todo.items()}
        while pending:
            finished, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            show(done.value)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, most likely for lack of memory; what is finished is kept: run the same "
            f"command again with fewer than --workers {workers}"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C: the parent alone decides how to stop. One that comes meanwhile reaches
    it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(job: Job, done: Any, stop: Any) -> None:
    global _run_here
    threading.Thread(target=_die_with_parent, daemon=True).start()
    encoding = job.make_encoder()

    def add(size: int) -> None:
        with done.get_lock():
            done.value += size
        if stop.is_set():
            raise Stopped

    def run_here(number: int, unit: Unit) -> None:
        with _exactly(unit.size, add) as advance:
            write_unit(number, unit, job, encoding, advance)

    _run_here = run_here


def _run_unit(number: int, unit: Unit) -> None:
    _run_here(number, unit)


def _die_with_parent() -> None:
    """A killed parent must not leave workers that write beside those of the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _exactly(size: int, add: Advance) -> Iterator[Advance]:
    """Pass on what a reader says it has read so that a unit adds up to its size; sizes unknown pass as they come."""
    told = 0

    def advance(step: int) -> None:
        nonlocal told
        step = min(step, size - told) if size else step
        told += step
        add(step)

    yield advance
    advance(size - told if size else 0)
