"""Completions that are written together: they join and leave the batch between two tokens."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from model import GPT, T5
from model.decoder import Decoder, NewToken, Request
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.worker import Backlog, Worker

End = str | Exception
"""Why a completion ended: "stop", "length", or what went wrong."""


@dataclass(eq=False)
class Writing:
    """One completion."""

    request: Request
    number: int
    """Of the choice in its request."""
    news: asyncio.Queue[tuple[int, NewToken | End]]
    """Where each (number, token) goes, and at last (number, end)."""
    waiting: bool = True
    over: bool = False
    """Finished, or no longer wanted."""

    @property
    def cost(self) -> int:
        """Tokens that it reads and may write."""
        return len(self.request.prompt) + len(self.request.source or ()) + self.request.max_new_tokens


class WritingQueue:
    def __init__(self, model: GPT | T5, worker: Worker, limits: Limits, metrics: Metrics):
        self.model, self.worker, self.limits, self.metrics = model, worker, limits, metrics
        self.backlog = Backlog(limits.max_waiting_tokens)
        self.waiting: deque[Writing] = deque()
        self.running: dict[int, Writing] = {}
        """By their numbers in the decoder."""
        self.decoder = self._new_decoder()
        self.arrived = asyncio.Event()

    def start(self, writings: list[Writing]) -> None:
        """Queue them. Raises ApiError 429 if too much is waiting."""
        self.backlog.admit(sum(writing.cost for writing in writings))
        self.waiting.extend(writings)
        self.arrived.set()

    def give_up(self, writing: Writing) -> None:
        """Compute no more of it, and let others wait in its place."""
        if writing.waiting and not writing.over:
            self.backlog.tokens -= writing.cost
        writing.over = True

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self.arrived.wait()
            async with self.worker.free:
                unwanted = [number for number, writing in self.running.items() if writing.over]
                for number in unwanted:
                    del self.running[number]
                self._take()
                await self._advance(unwanted)
            if not self.running and not self.waiting:
                self.arrived.clear()

    def _new_decoder(self) -> Decoder:
        return Decoder(self.model, prompt_tokens=self.limits.max_batch_tokens)

    def _take(self) -> None:
        """Let as many join as there are rows for."""
        while self.waiting and len(self.running) < self.limits.max_batch_rows:
            writing = self.waiting.popleft()
            if not writing.over:
                writing.waiting = False
                self.backlog.tokens -= writing.cost
                (number,) = self.decoder.add(writing.request)
                self.running[number] = writing

    async def _advance(self, unwanted: list[int]) -> None:
        since = time.monotonic()
        try:
            tokens = await self.worker.run(self._step, unwanted)
        except Exception as error:  # the requests get it, and later ones may do better
            for writing in self.running.values():
                self._finish(writing, error)
            self.running, self.decoder = {}, self._new_decoder()
            return
        if tokens:
            self.backlog.done(len(tokens), since)
            self.metrics.computed("write", len(tokens), len(tokens))
        for new in tokens:
            self._deliver(new)

    def _step(self, unwanted: list[int]) -> list[NewToken]:
        """In the model's thread: one more token for each completion."""
        for number in unwanted:
            self.decoder.remove(number)
        return self.decoder.step()

    def _deliver(self, new: NewToken) -> None:
        writing = self.running[new.sequence]
        if not writing.over and new.reason != "stop":
            writing.news.put_nowait((writing.number, new))
        if new.reason:
            del self.running[new.sequence]
            self._finish(writing, "stop" if new.reason == "stop" else "length")

    def _finish(self, writing: Writing, end: End) -> None:
        if not writing.over:
            writing.over = True
            writing.news.put_nowait((writing.number, end))
