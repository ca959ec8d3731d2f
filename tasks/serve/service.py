"""What the routes of one server share: the model, its queues, the limits and the measurements."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request

from tasks.serve.chat import Template
from tasks.serve.embedding_queue import EmbeddingQueue
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.served import Served
from tasks.serve.worker import Worker
from tasks.serve.writing_queue import WritingQueue


class Service:
    def __init__(self, served: Served, limits: Limits, metrics: Metrics):
        self.served, self.limits, self.metrics, self.template = served, limits, metrics, Template(served)
        self.worker, self.started = Worker(), int(time.time())
        self.embedding = EmbeddingQueue(served, self.worker, limits, metrics)
        self.writing = WritingQueue(served, self.worker, limits, metrics) if served.writes else None

    @property
    def card(self) -> dict[str, Any]:
        """The model as /v1/models describes it."""
        abilities = ["embeddings"] + (["completions", "chat"] if self.writing else [])
        return {
            "id": self.served.name, "object": "model", "created": self.started, "owned_by": "groundwork",
            "capabilities": abilities, "max_tokens": self.served.longest, "dimensions": self.served.embedder.width,
        }  # fmt: skip

    def measure(self) -> bytes:
        """What Prometheus reads."""
        self.metrics.waiting.labels("embed").set(self.embedding.backlog.tokens)
        self.metrics.waiting.labels("write").set(self.writing.backlog.tokens if self.writing else 0)
        return self.metrics.text()

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The queues work as long as the application runs."""
        queues = [queue for queue in (self.embedding, self.writing) if queue]
        tasks = [asyncio.create_task(queue.run()) for queue in queues]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.worker.close()


async def _service(request: Request) -> Service:
    return request.app.state.service


Shared = Annotated[Service, Depends(_service)]
"""The parameter of a route that is its server's service."""
