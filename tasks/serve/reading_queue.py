"""Dynamic batching of texts that are only read: what came while the model was busy is computed next, up to a number of
tokens."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.worker import Backlog, Worker


@dataclass(eq=False)
class Texts:
    """The inputs of one request."""

    results: list[Any]
    left: int
    waiting: int
    """Tokens that are not being computed yet."""
    finished: asyncio.Future[None]
    """Cancelled when the client is gone."""


@dataclass(frozen=True)
class Text:
    row: Sized
    request: Texts
    place: int


class ReadingQueue:
    def __init__(
        self, work: str, compute: Callable[[list[Any]], Iterable[Any]], worker: Worker, limits: Limits, metrics: Metrics
    ):
        """`compute` makes one result of each row, in the model's thread; `work` is its name in the metrics."""
        self.work, self.compute, self.worker, self.metrics = work, compute, worker, metrics
        self.budget = limits.max_batch_tokens
        self.backlog = Backlog(limits.max_waiting_tokens)
        self.waiting: deque[Text] = deque()
        self.arrived = asyncio.Event()

    async def read(self, rows: Sequence[Sized]) -> list[Any]:
        """The result of each row, whose length is its number of tokens. Raises ApiError 429 if too much is waiting."""
        tokens = sum(map(len, rows))
        self.backlog.admit(tokens)
        request = Texts([None] * len(rows), len(rows), tokens, asyncio.get_running_loop().create_future())
        self.waiting.extend(Text(row, request, place) for place, row in enumerate(rows))
        self.arrived.set()
        try:
            await request.finished
        finally:
            self.backlog.tokens -= request.waiting  # of a client that is gone, or of what follows a failure
        return request.results

    async def run(self) -> None:
        """Compute batches for ever."""
        while True:
            await self.arrived.wait()
            async with self.worker.free:
                batch = self._take()
                if batch:
                    await self._compute(batch)

    def _take(self) -> list[Text]:
        """The texts that wait longest, up to the budget; at least one, none of a client that is gone."""
        batch: list[Text] = []
        total = 0
        while self.waiting:
            text = self.waiting[0]
            gone = text.request.finished.done()
            if not gone and batch and total + len(text.row) > self.budget:
                break
            self.waiting.popleft()
            if not gone:
                self.backlog.tokens -= len(text.row)
                text.request.waiting -= len(text.row)
                batch.append(text)
                total += len(text.row)
        if not self.waiting:
            self.arrived.clear()
        return batch

    async def _compute(self, batch: list[Text]) -> None:
        since, tokens = time.monotonic(), sum(len(text.row) for text in batch)
        try:
            results = await self.worker.run(self.compute, [text.row for text in batch])
        except Exception as error:  # the requests get it, and the next batch may do better
            for text in batch:
                if not text.request.finished.done():
                    text.request.finished.set_exception(error)
            return
        self.backlog.done(tokens, since)
        self.metrics.computed(self.work, len(batch), tokens)
        for text, result in zip(batch, results, strict=True):
            request = text.request
            request.results[text.place] = result
            request.left -= 1
            if not request.left and not request.finished.done():
                request.finished.set_result(None)
