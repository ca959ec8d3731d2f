"""What every request passes before it is read: keys, size, and whether the server is closing."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tasks.serve.errors import ApiError, error_response
from tasks.serve.limits import Limits
from tasks.serve.metrics import Metrics

PATHS = (
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/chat/completions",
    "/classify",
)
"""By which requests are counted."""


class Guard:
    """ASGI middleware. What the model does takes a key and is refused once the server drains."""

    def __init__(self, app: ASGIApp, limits: Limits, keys: Sequence[str], metrics: Metrics):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.digests = [_digest(key) for key in keys]
        self.draining = False
        self.active = 0
        """Requests that are being answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, since = scope["path"], time.monotonic()
        label = path if path in PATHS else "/v1/models" if path.startswith("/v1/models/") else "other"

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(label, message["status"]).inc()
            await send(message)

        self.active += 1
        self.metrics.active.set(self.active)
        try:
            self._check(scope)
            await self.app(scope, self._limited(receive), send_counted)
        except ApiError as error:
            await error_response(error)(scope, receive, send_counted)
        finally:
            self.active -= 1
            self.metrics.active.set(self.active)
            self.metrics.seconds.labels(label).observe(time.monotonic() - since)

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if scope["path"].startswith(("/v1/", "/classify")):
            self._check_key(headers.get(b"authorization", b""))
            if self.draining:
                raise ApiError(503, "the server is shutting down: try another one", retry_after=1)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.limits.max_body_bytes:
            raise self._too_large(f"{int(length[:20])} bytes")

    def _check_key(self, header: bytes) -> None:
        if not self.digests:
            return
        kind, _, key = header.partition(b" ")
        if kind.lower() != b"bearer" or not key.strip():
            raise ApiError(
                401, "You didn't provide an API key: send it as Authorization: Bearer KEY", code="invalid_api_key"
            )
        given = hashlib.sha256(key.strip()).digest()
        # All are compared, each in constant time, so that the time tells nothing about them.
        if not sum(hmac.compare_digest(given, digest) for digest in self.digests):
            raise ApiError(401, "Incorrect API key provided", code="invalid_api_key")

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that stops a body which comes too slowly, or is too large and has not said so."""
        total, whole = 0, False
        deadline = time.monotonic() + self.limits.timeout

        async def limited() -> Message:
            nonlocal total, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise ApiError(408, f"the body was not here after {self.limits.timeout:g} s", code="timeout") from None
            whole = not message.get("more_body")
            total += len(message.get("body", b""))
            if total > self.limits.max_body_bytes:
                raise self._too_large("more bytes")
            return message

        return limited

    def _too_large(self, size: str) -> ApiError:
        return ApiError(413, f"the body has {size}, and the limit is {self.limits.max_body_bytes}: send less at once")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
