"""Dynamic batching of embeddings: what came while the model was busy is computed next, up to a number of tokens, in rows
of similar length."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.served import Served
from tasks.serve.worker import Backlog, Worker


@dataclass(eq=False)
class Texts:
    """The inputs of one request."""

    vectors: list[Tensor | None]
    left: int
    finished: asyncio.Future[None]
    """Cancelled when the client is gone."""


@dataclass(frozen=True)
class Text:
    tokens: list[int]
    request: Texts
    place: int


class EmbeddingQueue:
    def __init__(self, served: Served, worker: Worker, limits: Limits, metrics: Metrics):
        self.embedder, self.worker, self.metrics = served.embedder, worker, metrics
        self.embedder.batch_tokens = limits.max_batch_tokens
        self.budget = limits.max_batch_tokens
        self.backlog = Backlog(limits.max_waiting_tokens)
        self.waiting: deque[Text] = deque()
        self.arrived = asyncio.Event()

    async def embed(self, rows: list[list[int]]) -> Tensor:
        """Vectors [N, D] of N rows of tokens. Raises ApiError 429 if too much is waiting."""
        self.backlog.admit(sum(map(len, rows)))
        request = Texts([None] * len(rows), len(rows), asyncio.get_running_loop().create_future())
        self.waiting.extend(Text(row, request, place) for place, row in enumerate(rows))
        self.arrived.set()
        await request.finished
        return torch.stack([vector for vector in request.vectors if vector is not None])

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
            if not gone and batch and total + len(text.tokens) > self.budget:
                break
            self.waiting.popleft()
            self.backlog.tokens -= len(text.tokens)
            if not gone:
                batch.append(text)
                total += len(text.tokens)
        if not self.waiting:
            self.arrived.clear()
        return batch

    async def _compute(self, batch: list[Text]) -> None:
        since, tokens = time.monotonic(), sum(len(text.tokens) for text in batch)
        try:
            vectors_BD = await self.worker.run(self.embedder.encode_tokens, [text.tokens for text in batch])
        except Exception as error:  # the requests get it, and the next batch may do better
            for text in batch:
                if not text.request.finished.done():
                    text.request.finished.set_exception(error)
            return
        self.backlog.done(tokens, since)
        self.metrics.computed("embed", len(batch), tokens)
        for text, vector_D in zip(batch, vectors_BD, strict=True):
            request = text.request
            request.vectors[text.place] = vector_D
            request.left -= 1
            if not request.left and not request.finished.done():
                request.finished.set_result(None)
