"""The background thread hands on items and errors, and never outlives its use."""

import gc
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data.prefetch import Prefetcher

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    gc.collect()
    wait_until(lambda: threading.active_count() == before)


def wait_until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_items_arrive_in_order_and_end():
    prefetcher = Prefetcher(iter(range(100)), depth=3)
    assert list(prefetcher) == list(range(100))
    assert list(prefetcher) == []


def test_no_more_than_depth_items_are_ready():
    made = []
    prefetcher = Prefetcher((made.append(item) or item for item in itertools.count()), depth=3)
    wait_until(lambda: len(made) == 3)
    assert next(prefetcher) == 0
    wait_until(lambda: len(made) == 4)
    time.sleep(0.05)
    assert len(made) == 4
    prefetcher.close()


def test_error_keeps_its_type_and_place():
    def items():
        yield from range(2)
        raise FileNotFoundError("shard 7 is gone")

    prefetcher = Prefetcher(items(), depth=4)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    with pytest.raises(FileNotFoundError, match="shard 7 is gone"):
        next(prefetcher)
    assert list(prefetcher) == []


def test_close_stops_at_once_and_ends_the_iteration():
    prefetcher = Prefetcher(itertools.count(), depth=2)
    next(prefetcher)
    prefetcher.close()
    prefetcher.close()
    assert list(prefetcher) == []


def test_dropped_without_close():
    prefetcher = Prefetcher(itertools.count(), depth=2)
    next(prefetcher)
    del prefetcher


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_collected_inside_its_own_thread():
    """The last reference may go wherever the garbage collector runs, in the prefetching thread too."""
    holder = []

    def items():
        yield 0
        wait_until(lambda: holder)
        holder.clear()
        yield 1

    prefetcher = Prefetcher(items(), depth=2)
    thread = next(thread for thread in threading.enumerate() if thread.name == "prefetch")
    holder.append(prefetcher)
    del prefetcher
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit(3)", "1 / 0"])
def test_interpreter_ends_while_the_thread_works(ending):
    program = f"import itertools\nfrom data.prefetch import Prefetcher\np = Prefetcher(itertools.count(), 2)\nnext(p)\n{ending}"
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, cwd=ROOT, timeout=30, capture_output=True, text=True)
    assert finished.returncode == {"pass": 0, "raise SystemExit(3)": 3, "1 / 0": 1}[ending]
    assert "Fatal" not in finished.stderr
