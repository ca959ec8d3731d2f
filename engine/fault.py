"""Signals that ask a run to stop: it finishes the step, saves, and says how to continue."""

import signal
import time
from types import FrameType

from engine.dist import World, all_max

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
IMPATIENT_AFTER_SECONDS = 1.0


class StopRequest:
    """Remembers the first stop signal. A second Ctrl-C, a second or more after the first, interrupts at once.

    Launchers forward a Ctrl-C as SIGTERM on top of the terminal's own SIGINT, so other repeats mean nothing.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._since = 0.0
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def agreed(self, world: World) -> int:
        """The signal that any rank has received, 0 if none: the same answer on every rank."""
        return all_max(self.signal, world.device)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > IMPATIENT_AFTER_SECONDS:
            raise KeyboardInterrupt
