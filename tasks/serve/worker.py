"""The one thread in which the model computes, and how much waits for it."""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tasks.serve.errors import ApiError

Result = TypeVar("Result")
SMOOTHING = 0.2
"""Weight of the newest batch in the measured speed."""


class Worker:
    """Runs one function at a time outside the event loop. `free` is held from choosing a batch until it is computed, so
    that a batch takes in everything that came while the model was busy; waiters get it in turn."""

    def __init__(self) -> None:
        self.free = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")

    async def run(self, function: Callable[..., Result], *args: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


class Backlog:
    """Tokens that wait, and the speed at which they are worked off."""

    def __init__(self, limit: int):
        self.limit, self.tokens, self.speed = limit, 0, 0.0

    def admit(self, tokens: int) -> None:
        """Count tokens as waiting. Raises ApiError 429 if that is too many; a request that alone is too large may wait
        alone."""
        if self.tokens and self.tokens + tokens > self.limit:
            seconds = min(60, max(1, math.ceil(self.tokens / self.speed))) if self.speed else 1
            raise ApiError(
                429,
                f"{self.tokens} tokens are waiting, and {tokens} more would pass the limit of {self.limit}: "
                f"try again in {seconds} s",
                code="rate_limit_exceeded",
                retry_after=seconds,
            )
        self.tokens += tokens

    def done(self, tokens: int, since: float) -> None:
        """Tokens were worked off from the time `since` (of time.monotonic) until now."""
        speed = tokens / max(time.monotonic() - since, 1e-6)
        self.speed = SMOOTHING * speed + (1 - SMOOTHING) * self.speed if self.speed else speed
