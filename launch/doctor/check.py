"""What a check finds, and checks that hang or raise turned into findings."""

import threading
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

Status = Literal["ok", "warn", "fail", "skip"]


class Check(NamedTuple):
    name: str
    status: Status
    found: str
    fix: str = ""
    """What to do about it; empty if nothing has to be done."""


class Task(NamedTuple):
    """A check still to be made."""

    name: str
    make: Callable[[], Check | list[Check]]
    if_it_hangs: str
    """The fix when there is no answer in time."""


def ok(name: str, found: str) -> Check:
    return Check(name, "ok", found)


def warn(name: str, found: str, fix: str) -> Check:
    return Check(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Check:
    return Check(name, "fail", found, fix)


def skip(name: str, reason: str) -> Check:
    return Check(name, "skip", reason)


def run_tasks(tasks: Iterable[Task], seconds: float) -> list[Check]:
    """Make all checks side by side; one that raises or takes longer than `seconds` is a fail with its name.

    A thread that hangs (a dead network mount, say) cannot be ended; it is a daemon, so the process still can.
    """
    started = [(task, *_start(task)) for task in tasks]
    deadline = time.monotonic() + seconds
    checks: list[Check] = []
    for task, thread, results in started:
        thread.join(max(deadline - time.monotonic(), 0))
        checks += results or [fail(task.name, f"no answer in {seconds:g} s", task.if_it_hangs)]
    return checks


def _start(task: Task) -> tuple[threading.Thread, list[Check]]:
    results: list[Check] = []

    def make() -> None:
        try:
            made = task.make()
            results.extend([made] if isinstance(made, Check) else made)
        except Exception as error:  # whatever it is, the other checks still count
            problem = f"the check broke off: {type(error).__name__}: {error}"
            results.append(fail(task.name, problem, "see what the message names; the other checks are not affected"))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    return thread, results
