"""When a run stops by itself: before its allocation ends, with time for one more step and its save."""

import signal

import pytest
import torch

from engine import fault
from engine.dist import World
from engine.fault import TIME_IS_UP, StopRequest, TurnClock, exit_code

WORLD = World(0, 1, torch.device("cpu"), ("here",))


@pytest.fixture
def clock(monkeypatch):
    """Time that moves only by hand, and one rank that agrees with itself."""

    class Clock:
        now = 1_000_000.0

    monkeypatch.setattr(fault.time, "time", lambda: Clock.now)
    monkeypatch.setattr(fault.time, "monotonic", lambda: Clock.now)
    monkeypatch.setattr(fault, "all_max", lambda value, device: value)
    before = {number: signal.getsignal(number) for number in fault.STOP_SIGNALS}
    yield Clock
    for number, handler in before.items():
        signal.signal(number, handler)


def turns_until_it_stops(clock, seconds: list[float], **environ: str) -> int | None:
    """Turns that are done when it says stop; None if it never does."""
    stop = StopRequest(30.0, environ)
    for number, turn in enumerate(seconds, start=1):
        clock.now += turn
        if stop.agreed(WORLD):
            return number
    return None


def test_it_leaves_time_for_a_step_and_a_save(clock):
    end = str(int(clock.now) + 200)
    # After n turns of 10 s, 200 - 10 n s are left; it needs two turns and the 30 s of the reserve.
    assert turns_until_it_stops(clock, [10.0] * 20, SLURM_JOB_END_TIME=end) == 16


def test_the_longest_turn_counts_and_the_first_compiles(clock):
    end = str(int(clock.now) + 400)
    assert turns_until_it_stops(clock, [100, *[10.0] * 30], SLURM_JOB_END_TIME=end) == 27, (
        "400 - 100 - 26 x 10 < 2 x 10 + 30"
    )
    end = str(int(clock.now) + 400)
    assert turns_until_it_stops(clock, [100, 10, 60, *[10.0] * 30], SLURM_JOB_END_TIME=end) == 12, "a save took 60 s"


@pytest.mark.parametrize("environ", [{}, {"SLURM_JOB_END_TIME": ""}, {"SLURM_JOB_END_TIME": "UNLIMITED"}])
def test_without_a_limit_it_goes_on(clock, environ):
    assert turns_until_it_stops(clock, [10.0] * 50, **environ) is None


def test_a_signal_goes_before_the_clock(clock):
    stop = StopRequest(30.0, {"SLURM_JOB_END_TIME": "1"})
    assert stop.agreed(WORLD) == TIME_IS_UP < min(fault.STOP_SIGNALS)
    stop._receive(signal.SIGTERM, None)
    assert stop.agreed(WORLD) == signal.SIGTERM
    assert stop.farewell(signal.SIGTERM, 1_200, None) == "stopped after step 1,200 and saved nothing, on SIGTERM"


def test_exit_codes_tell_what_is_to_be_continued():
    assert exit_code(TIME_IS_UP) == exit_code(signal.SIGUSR1) == 138
    assert (exit_code(signal.SIGTERM), exit_code(signal.SIGINT)) == (143, 130)


def test_a_turn_is_from_call_to_call(clock):
    turns = TurnClock()
    longest = []
    for seconds in (50.0, 3.0, 8.0, 2.0):
        clock.now += seconds
        longest.append(turns.longest_turn())
    assert longest == [50.0, 3.0, 8.0, 8.0]
