"""uvicorn, which on SIGTERM finishes what it has accepted before it closes."""

import logging
import math
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tasks.serve.guard import Guard


class DrainingServer(uvicorn.Server):
    """After the first signal new requests get 503 (and /health says so) while those accepted are answered; it ends
    with the last of them, or once the time limit has passed twice: of a stream that its client does not read there is no end.
    A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, guard: Guard):
        super().__init__(config)
        self.guard, self.deadline = guard, math.inf
        config.timeout_graceful_shutdown = math.ceil(guard.limits.timeout)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.guard.draining:
            self.should_exit = self.force_exit = True
            return
        self.guard.draining = True
        self.deadline = time.monotonic() + self.guard.limits.timeout
        logging.getLogger("uvicorn.error").info("draining: %d requests are being answered", self.guard.active)

    async def on_tick(self, counter: int) -> bool:
        if self.guard.draining and (not self.guard.active or time.monotonic() > self.deadline):
            self.should_exit = True
        return await super().on_tick(counter)


def serve(app: FastAPI, host: str, port: int) -> int:
    """Serve until a signal; 1 if it could not start."""
    config = uvicorn.Config(app.state.guard, host=host, port=port, log_level="info", access_log=False, lifespan="on")
    server = DrainingServer(config, app.state.guard)
    try:
        server.run()
    except SystemExit as error:  # uvicorn has said why, for one that the port is taken
        return int(error.code or 0)
    return 0 if server.started else 1
