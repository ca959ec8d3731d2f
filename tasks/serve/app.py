"""The routes, and what is common to their answers: names, time limits, clients that went away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from tasks.serve import completions, embeddings
from tasks.serve.chat import Template
from tasks.serve.embedding_queue import EmbeddingQueue
from tasks.serve.errors import ApiError, add_handlers, error_body
from tasks.serve.guard import Guard
from tasks.serve.inputs import check_model
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics
from tasks.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from tasks.serve.served import Served
from tasks.serve.worker import Worker
from tasks.serve.writing_queue import WritingQueue

PAGE = Path(__file__).with_name("page.html")


def create_app(served: Served, limits: Limits = Limits(), keys: Sequence[str] = ()) -> FastAPI:  # noqa: B008
    """The application; `state.guard` is what uvicorn serves."""
    metrics, worker, template = Metrics(), Worker(), Template(served)
    embedding = EmbeddingQueue(served, worker, limits, metrics)
    writing = WritingQueue(served, worker, limits, metrics) if served.writes else None
    queues = [queue for queue in (embedding, writing) if queue]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        running = [asyncio.create_task(queue.run()) for queue in queues]
        yield
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        worker.close()

    app = FastAPI(title="Groundwork", lifespan=lifespan, docs_url=None, redoc_url=None)
    guard = app.state.guard = Guard(app, limits, keys, metrics)
    add_handlers(app)
    started = int(time.time())
    abilities = ["embeddings"] + (["completions", "chat"] if served.writes else [])
    card = {
        "id": served.name, "object": "model", "created": started, "owned_by": "groundwork",
        "capabilities": abilities, "max_tokens": served.longest, "dimensions": served.embedder.width,
    }  # fmt: skip

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html")

    @app.get("/health")
    async def health() -> JSONResponse:
        state = "draining" if guard.draining else "ok"
        return JSONResponse({"status": state, "model": served.name}, 503 if guard.draining else 200)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        metrics.waiting.labels("embed").set(embedding.backlog.tokens)
        metrics.waiting.labels("write").set(writing.backlog.tokens if writing else 0)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        check_model(served, name)
        return card

    @app.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        return await answered(embeddings.answer(served, embedding, body), request)

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return await written(completions.complete(served, writing, body), body, request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await written(completions.chat(served, writing, template, body), body, request)

    async def written(answer: completions.Answer, body: Any, request: Request) -> Response:
        if not body.stream:
            return await answered(answer.whole(), request)
        usage = body.stream_options is not None and body.stream_options.include_usage
        return StreamingResponse(server_sent(answer, usage, limits.timeout), media_type="text/event-stream")

    async def answered(work: Coroutine[Any, Any, dict[str, Any]], request: Request) -> Response:
        """The work's result, unless it takes too long or the client goes away: then it is cancelled."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
        await asyncio.wait({task, gone}, timeout=limits.timeout, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if task.done():
            return JSONResponse(task.result())
        task.cancel()
        if gone.done() and not gone.cancelled():
            metrics.dropped.inc()
            return Response(status_code=499)
        raise timed_out(limits.timeout)

    return app


async def disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def server_sent(answer: completions.Answer, usage: bool, timeout: float) -> AsyncIterator[str]:
    """The chunks as server-sent events; what goes wrong after the first is an event too."""
    deadline = time.monotonic() + timeout
    async with aclosing(answer.chunks(usage)) as chunks:
        try:
            while True:
                chunk = await asyncio.wait_for(anext(chunks), max(0, deadline - time.monotonic()))
                yield f"data: {json.dumps(chunk)}\n\n"
        except StopAsyncIteration:
            pass
        except asyncio.TimeoutError:
            yield f"data: {json.dumps(error_body(timed_out(timeout)))}\n\n"
    yield "data: [DONE]\n\n"


def timed_out(timeout: float) -> ApiError:
    return ApiError(
        504, f"the request took longer than {timeout:g} s: send less at once, or raise --timeout", code="timeout"
    )
