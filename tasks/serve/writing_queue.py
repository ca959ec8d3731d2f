"""Completions that are written together: they join and leave the batch between two tokens."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from model import GPT
from model.continuous import ContinuousBatch, Row
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.served import Served
from tasks.serve.worker import Backlog, Worker

End = str | Exception
"""Why a completion ended: "stop", "length", or what went wrong."""


@dataclass(eq=False)
class Writing:
    """One completion."""

    row: Row
    number: int
    """Of the choice in its request."""
    left: int
    """Tokens that it may still write."""
    news: asyncio.Queue[tuple[int, int | End]]
    """Where each (number, token) goes, and at last (number, end)."""
    over: bool = False
    """Finished, or no longer wanted."""


class WritingQueue:
    def __init__(self, served: Served, worker: Worker, limits: Limits, metrics: Metrics):
        assert isinstance(served.model, GPT)
        self.batch, self.end_id = ContinuousBatch(served.model), served.tokenizer.eod_id
        self.worker, self.limits, self.metrics = worker, limits, metrics
        self.backlog = Backlog(limits.max_waiting_tokens)
        self.waiting: deque[Writing] = deque()
        self.running: list[Writing] = []
        self.arrived = asyncio.Event()

    def start(self, writings: list[Writing]) -> None:
        """Queue them. Raises ApiError 429 if too much is waiting."""
        self.backlog.admit(sum(map(cost, writings)))
        self.waiting.extend(writings)
        self.arrived.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self.arrived.wait()
            async with self.worker.free:
                leaving = [writing for writing in self.running if writing.over]
                self.running = [writing for writing in self.running if not writing.over]
                joining = self._take()
                await self._advance(leaving, joining)
            if not self.running and not self.waiting and not self.batch.rows:
                self.arrived.clear()

    def _take(self) -> list[Writing]:
        """Those that join: as many as there are rows for, and prompts in one padded batch."""
        joining: list[Writing] = []
        longest = 0
        while self.waiting and len(self.running) + len(joining) < self.limits.max_batch_rows:
            longest = max(longest, len(self.waiting[0].row.prompt))
            if joining and longest * (len(joining) + 1) > self.limits.max_batch_tokens:
                break
            writing = self.waiting.popleft()
            self.backlog.tokens -= cost(writing)
            if not writing.over:
                joining.append(writing)
        return joining

    async def _advance(self, leaving: list[Writing], joining: list[Writing]) -> None:
        since = time.monotonic()
        try:
            await self.worker.run(self._compute, [w.row for w in leaving], [w.row for w in joining])
        except Exception as error:  # the requests get it, and later ones may do better
            for writing in (*self.running, *joining):
                self._finish(writing, error)
            self.running = []
            self.batch = ContinuousBatch(self.batch.model)
            return
        self.running += joining
        if self.running:
            prompts = sum(len(writing.row.prompt) for writing in joining)
            self.backlog.done(len(self.running) + prompts, since)
            self.metrics.computed("write", len(self.running), len(self.running) + prompts)
        for writing in self.running:
            if not writing.over:
                self._deliver(writing)

    def _compute(self, leaving: list[Row], joining: list[Row]) -> None:
        """In the model's thread: one more token for each row."""
        self.batch.leave(leaving)
        if self.batch.rows:
            self.batch.step()
        if joining:
            self.batch.join(joining)

    def _deliver(self, writing: Writing) -> None:
        if writing.row.token == self.end_id:
            return self._finish(writing, "stop")
        writing.news.put_nowait((writing.number, writing.row.token))
        writing.left -= 1
        if not writing.left:
            self._finish(writing, "length")

    def _finish(self, writing: Writing, end: End) -> None:
        if not writing.over:
            writing.over = True
            writing.news.put_nowait((writing.number, end))


def cost(writing: Writing) -> int:
    """Tokens that it reads and may write."""
    return len(writing.row.prompt) + writing.left
