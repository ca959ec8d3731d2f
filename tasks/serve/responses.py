"""What is common to all answers of the model: time limits, clients that went away, streams."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from tasks.serve.answer import Answer
from tasks.serve.errors import ApiError, error_body, failed
from tasks.serve.requests import WritingRequest
from tasks.serve.service import Service

UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""For proxies, which would else collect a stream."""


async def answered(service: Service, work: Coroutine[Any, Any, dict[str, Any]], request: Request) -> Response:
    """The work's result, unless it takes too long or the client goes away: then it is cancelled."""
    timeout = service.limits.timeout
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
    await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if task.done():
        return JSONResponse(task.result())
    task.cancel()
    if gone.done() and not gone.cancelled():
        service.metrics.dropped.inc()
        return Response(status_code=499)
    raise timed_out(timeout)


async def written(service: Service, answer: Answer, body: WritingRequest, request: Request) -> Response:
    """A completion, whole or as a stream."""
    if not body.stream:
        return await answered(service, answer.whole(), request)
    usage = body.stream_options is not None and body.stream_options.include_usage
    return Stream(service, answer, usage)


class Stream(StreamingResponse):
    """An answer as server-sent events, given up when the client leaves, be it before the first one."""

    def __init__(self, service: Service, answer: Answer, usage: bool):
        events = server_sent(answer, usage, service.limits.timeout)
        super().__init__(events, media_type="text/event-stream", headers=UNBUFFERED)
        self.service, self.answer = service, answer

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except asyncio.CancelledError:
            self.service.metrics.dropped.inc()
            raise
        finally:
            self.answer.give_up()


async def disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def server_sent(answer: Answer, usage: bool, timeout: float) -> AsyncIterator[str]:
    """The chunks as server-sent events; what goes wrong after the first is an event too."""
    deadline = time.monotonic() + timeout
    async with aclosing(answer.chunks(usage)) as chunks:
        try:
            while True:
                chunk = await asyncio.wait_for(anext(chunks), max(0, deadline - time.monotonic()))
                yield event(chunk)
        except StopAsyncIteration:
            pass
        except asyncio.TimeoutError:
            yield event(error_body(timed_out(timeout)))
        except Exception as error:  # of the model, whatever it is: too late for a status of its own
            yield event(error_body(failed(error)))
    yield "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def timed_out(timeout: float) -> ApiError:
    return ApiError(
        504, f"the request took longer than {timeout:g} s: send less at once, or raise --timeout", code="timeout"
    )
