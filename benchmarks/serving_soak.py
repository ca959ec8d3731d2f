"""A server under mixed load for minutes: does its memory grow? (See serving.py.)"""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.serving_models import mixed_texts
from benchmarks.serving_process import PYTHON, running

TEXTS = mixed_texts(2000)
WARM_UP = 0.3
"""Share of the time that the slope leaves out: the allocator's and the cache's first growth."""
MALFORMED = (
    b"{", b"null", b'{"model": "decoder"}', b'{"model": "decoder", "input": []}', b'{"model": "other", "input": "a"}',
    b'{"model": "decoder", "input": [99999999]}', b'{"model": "decoder", "input": "' + b"word " * 5_000 + b'"}',
    b"[" * 20_000, b'{"model": "decoder", "input": "a", "tools": 1}', b'\xff\xfe{"model": NaN}',
)  # fmt: skip

Act = Callable[[httpx.AsyncClient, random.Random], Awaitable[str]]


async def embed(client: httpx.AsyncClient, draw: random.Random) -> str:
    body = {"model": "decoder", "input": draw.sample(TEXTS, draw.randint(1, 16))}
    return str((await client.post("/v1/embeddings", json=body)).status_code)


async def complete(client: httpx.AsyncClient, draw: random.Random) -> str:
    return str((await client.post("/v1/completions", json=completion(draw, draw.randint(1, 64)))).status_code)


async def stream(client: httpx.AsyncClient, draw: random.Random) -> str:
    async with client.stream("POST", "/v1/completions", json=completion(draw, 64, stream=True)) as answer:
        await answer.aread()
    return f"stream {answer.status_code}"


async def malformed(client: httpx.AsyncClient, draw: random.Random) -> str:
    path = draw.choice(["/v1/embeddings", "/v1/completions", "/v1/chat/completions", "/v1/none"])
    answer = await client.post(path, content=draw.choice(MALFORMED), headers={"Content-Type": "application/json"})
    return f"malformed {answer.status_code}"


async def leave(client: httpx.AsyncClient, draw: random.Random) -> str:
    """A client that goes away in the middle."""
    async with client.stream("POST", "/v1/completions", json=completion(draw, 300, stream=True)) as answer:
        async for _ in answer.aiter_lines():
            break
    with suppress(httpx.TimeoutException):
        await client.post("/v1/embeddings", json={"model": "decoder", "input": TEXTS[:50]}, timeout=0.05)
    return "left"


async def ask_too_much(client: httpx.AsyncClient, draw: random.Random) -> str:
    """More than the server's time limit allows."""
    return f"long {(await client.post('/v1/completions', json=completion(draw, 400, n=8))).status_code}"


ACTS: dict[Act, int] = {embed: 4, complete: 3, stream: 3, malformed: 1, leave: 1, ask_too_much: 1}
"""How many workers do what, all the time."""


def completion(draw: random.Random, tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "decoder", "prompt": draw.choice(TEXTS)[:200], "max_tokens": tokens, "seed": 1, **more}


def soak(folder: Path, minutes: float) -> None:
    command = (*PYTHON, "-m", "tasks", "serve", str(folder), "--port", "0", "--timeout", "4")
    with running(command, min(os.sched_getaffinity(0))) as server:
        asyncio.run(load(server.url, server.process.pid, 60 * minutes))


async def load(url: str, pid: int, seconds: float) -> None:
    """Print the server's resident memory four times a minute, its slope, and how often which answer came."""
    start, answers = time.monotonic(), Counter[str]()
    minutes: list[float] = []
    megabytes: list[float] = []

    async def work(act: Act, seed: int) -> None:
        draw = random.Random(seed)
        async with httpx.AsyncClient(base_url=url, timeout=None) as client:
            while time.monotonic() - start < seconds:
                try:
                    answer = await act(client, draw)
                except httpx.TransportError as error:  # a connection that the server had just given up as idle, say
                    answer = type(error).__name__
                    await asyncio.sleep(0.1)
                answers[answer] += 1

    async def watch() -> None:
        while (passed := time.monotonic() - start) < seconds:
            minutes.append(passed / 60)
            megabytes.append(resident_megabytes(pid))
            print(f"{passed / 60:.2f} min: {megabytes[-1]:.0f} MB, {answers.total()} requests", flush=True)
            await asyncio.sleep(15)

    acts = [act for act, count in ACTS.items() for _ in range(count)]
    await asyncio.gather(watch(), *(work(act, seed) for seed, act in enumerate(acts)))
    warm = [i for i, minute in enumerate(minutes) if minute >= WARM_UP * seconds / 60]
    slope = np.polyfit([minutes[i] for i in warm], [megabytes[i] for i in warm], 1)[0] if len(warm) > 1 else np.nan
    print(f"after the first {WARM_UP:.0%}: {slope:+.2f} MB/min, {megabytes[warm[0]]:.0f} to {megabytes[-1]:.0f} MB")
    print(", ".join(f"{answer}: {count}" for answer, count in sorted(answers.items())))


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024
