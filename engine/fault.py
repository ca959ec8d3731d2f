"""When a run stops early: a signal asks it to, or its time is nearly up. It finishes the step, saves, and says how to continue.

Its exit code is 128 + the signal. USR1 (138) means "make room, to be continued", and so does the end of the allocation: what
started the run is to start it again. TERM (143) and INT (130) end it.
"""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from engine.dist import World, all_max

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TIME_IS_UP = 1
"""Agreed on in place of a signal's number. It is below all of them, so that a signal to any rank goes before it."""
IMPATIENT_AFTER_SECONDS = 1.0


class StopRequest:
    """Remembers the first stop signal, and watches the end of the allocation (SLURM_JOB_END_TIME, seconds since 1970).

    A second Ctrl-C, a second or more after the first, interrupts at once. Launchers forward a Ctrl-C as SIGTERM on top of
    the terminal's own SIGINT, so other repeats mean nothing.
    """

    def __init__(self, reserve_seconds: float, environ: Mapping[str, str] = os.environ) -> None:
        self.signal = 0
        self._since = 0.0
        end = environ.get("SLURM_JOB_END_TIME", "")
        self.end_time = float(end) if end.isdigit() else float("inf")
        self.reserve_seconds = reserve_seconds
        self._clock = TurnClock()
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def agreed(self, world: World) -> int:
        """Why to stop after this step, 0 to go on: the same on every rank, each of which calls it once a step."""
        needed = 2 * self._clock.longest_turn() + self.reserve_seconds  # one more step, and time to save it
        time_is_up = time.time() + needed > self.end_time
        return all_max(self.signal or (TIME_IS_UP if time_is_up else 0), world.device)

    def farewell(self, stopping: int, step: int, saved: Path | None) -> str:
        """Why the run stops after `step` and what it leaves, in words; `stopping` is what `agreed` has returned."""
        if stopping == TIME_IS_UP:
            reason = f"{self.end_time - time.time():,.0f} s before the end of the allocation"
        else:
            reason = f"on {signal.Signals(stopping).name}"
        if saved is None:
            return f"stopped after step {step:,} and saved nothing, {reason}"
        return f"stopped after step {step:,} and saved {saved}, {reason}; the same command continues from there"

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT_AFTER_SECONDS:
            raise KeyboardInterrupt


class TurnClock:
    """Seconds of the longest turn of the loop so far: a step with the validation and the save that came with it.

    The first turn, which compiles, counts only until there is a second.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._turns = 0
        self._longest = 0.0

    def longest_turn(self) -> float:
        """Called once a turn."""
        now = time.monotonic()
        seconds, self._began = now - self._began, now
        self._turns += 1
        self._longest = seconds if self._turns <= 2 else max(self._longest, seconds)
        return self._longest


def exit_code(stopping: int) -> int:
    """128 + the signal; that of USR1 if the time is up."""
    return 128 + (signal.SIGUSR1 if stopping == TIME_IS_UP else stopping)
