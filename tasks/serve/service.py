"""What the routes of one server share: the model, its queues, the limits and the measurements."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from tasks.serve.chat import Template
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.reading_queue import ReadingQueue
from tasks.serve.served import Served
from tasks.serve.worker import Worker
from tasks.serve.writing_queue import WritingQueue


class Service:
    def __init__(self, served: Served, limits: Limits, metrics: Metrics):
        self.served, self.limits, self.metrics, self.template = served, limits, metrics, Template(served)
        self.worker, self.started = Worker(), int(time.time())
        shared = self.worker, limits, metrics
        embedder, classifier, writer = served.embedder, served.classifier, served.writer
        self.embedding = ReadingQueue("embed", embedder.encode_tokens, *shared) if embedder else None
        self.labelling = ReadingQueue("classify", classifier.scores, *shared) if classifier else None
        self.writing = WritingQueue(writer, *shared) if writer else None

    @property
    def queues(self) -> dict[str, ReadingQueue | WritingQueue]:
        """By the names of their work."""
        queues = {"embed": self.embedding, "classify": self.labelling, "write": self.writing}
        return {work: queue for work, queue in queues.items() if queue}

    @property
    def card(self) -> dict[str, Any]:
        """The model as /v1/models describes it."""
        served = self.served
        return {
            "id": served.name, "object": "model", "created": self.started, "owned_by": "groundwork",
            "capabilities": served.abilities, "max_tokens": served.longest,
            "dimensions": served.embedder.dimensions if served.embedder else None,
            "labels": list(served.classifier.labels) if served.classifier else None,
            "judges": served.classifier.judges if served.classifier else None,
        }  # fmt: skip

    def measure(self) -> bytes:
        """What Prometheus reads."""
        for work, queue in self.queues.items():
            self.metrics.waiting.labels(work).set(queue.backlog.tokens)
        return self.metrics.text()

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The queues work as long as the application runs."""
        tasks = [asyncio.create_task(queue.run()) for queue in self.queues.values()]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.worker.close()


async def _service(request: Request) -> Service:
    return request.app.state.service


Shared = Annotated[Service, Depends(_service)]
"""The parameter of a route that is its server's service."""
