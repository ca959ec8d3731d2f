"""Load from the `openai` client, in a process of its own: a task a line of JSON on standard input, its result one back.

A task: {"url", "model", "kind": "embeddings" | "completions", "concurrency", "characters", "seconds", "warmup"}. As
many workers send one request after another, each of a text cut to so many characters; what ends after the warm-up and
in time is counted.
"""

import asyncio
import json
import sys
import time
from itertools import cycle
from typing import Any

from openai import AsyncOpenAI

from benchmarks.serving_models import mixed_texts

NEW_TOKENS = 64


async def embed(client: AsyncOpenAI, model: str, text: str) -> dict[str, float]:
    await client.embeddings.create(model=model, input=text)
    return {}


async def complete(client: AsyncOpenAI, model: str, text: str) -> dict[str, float]:
    """The request's tokens and the seconds until the first of them."""
    began, first, tokens = time.perf_counter(), 0.0, 0
    async for chunk in await client.completions.create(
        model=model, prompt=text, max_tokens=NEW_TOKENS, temperature=0, stream=True,
        stream_options={"include_usage": True},
    ):  # fmt: skip
        first = first or time.perf_counter() - began
        tokens += chunk.usage.completion_tokens if chunk.usage else 0
    return {"first": first, "tokens": tokens}


async def load(task: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each request, tokens and seconds to the first one; failures; all answers; the client's share of a core."""
    send, texts = (embed if task["kind"] == "embeddings" else complete), cycle(mixed_texts(2000))
    start = time.perf_counter() + task["warmup"]
    end, done, failed, answered = start + task["seconds"], [], 0, 0
    async with AsyncOpenAI(base_url=f"{task['url']}/v1", api_key="none", max_retries=0, timeout=120) as client:

        async def work() -> None:
            nonlocal failed, answered
            while (began := time.perf_counter()) < end:
                try:
                    seen = await send(client, task["model"], next(texts)[: task["characters"]])
                except Exception as error:  # the run goes on, and its report has the number
                    print(f"{task['url']}: {error}", file=sys.stderr)
                    failed += 1
                    continue
                now, answered = time.perf_counter(), answered + 1
                if start <= now <= end:
                    done.append({"seconds": now - began, **seen})

        await asyncio.gather(*(work() for _ in range(task["concurrency"])))
    return {"done": done, "failed": failed, "all": answered}


def main() -> None:
    for line in sys.stdin:
        task, cpu, began = json.loads(line), time.process_time(), time.perf_counter()
        result = asyncio.run(load(task))
        result["client_share"] = (time.process_time() - cpu) / (time.perf_counter() - began)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
