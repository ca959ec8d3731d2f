"""The completions of one request, in OpenAI's shapes: whole, or in chunks as they are written."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from data.tokenizer import Tokenizer
from model.decoder import NewToken
from tasks.serve import logprobs
from tasks.serve.choice import Choice
from tasks.serve.logprobs import Logged
from tasks.serve.writing_queue import WritingQueue


@dataclass
class Answer:
    name: str
    tokenizer: Tokenizer
    choices: list[Choice]
    queue: WritingQueue
    """Where they are written."""
    news: asyncio.Queue
    """(number of the choice, token or end)."""
    prompt_tokens: int
    chat: bool
    written: int = 0
    head: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        prefix = "chatcmpl" if self.chat else "cmpl"
        self.head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}

    async def events(self) -> AsyncGenerator[Choice, None]:
        """Each choice that has something new, until all have ended. Left early, the others are given up."""
        try:
            while any(not choice.end for choice in self.choices):
                number, news = await self.news.get()
                choice = self.choices[number]
                if not choice.end:
                    self.written += isinstance(news, NewToken)
                    choice.add(news)
                    yield choice
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Nothing more of it is wanted."""
        for choice in self.choices:
            self.queue.give_up(choice.writing)

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.written, "total_tokens": total}

    async def whole(self) -> dict[str, Any]:
        async for _ in self.events():
            pass
        choices = []
        for number, choice in enumerate(self.choices):
            text, logged = choice.take()
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append(
                {"index": number, **said, "logprobs": self._logs(choice, logged), "finish_reason": choice.end}
            )
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self.usage}

    async def chunks(self, include_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces as they come; for each choice, the last one says why it ended."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {**self.head, "object": kind, **({"usage": None} if include_usage else {})}
        if self.chat:
            first = {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
            for number in range(len(self.choices)):
                yield {**head, "choices": [{"index": number, **first}]}
        async with aclosing(self.events()) as events:
            async for choice in events:
                text, logged = choice.take()
                if text or logged or choice.end:
                    yield {**head, "choices": [self._piece(choice, text, logged)]}
        if include_usage:
            yield {**head, "choices": [], "usage": self.usage}

    def _piece(self, choice: Choice, text: str, logged: Sequence[Logged]) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return {
            "index": choice.writing.number, **said,
            "logprobs": self._logs(choice, logged) if logged else None, "finish_reason": choice.end or None,
        }  # fmt: skip

    def _logs(self, choice: Choice, logged: Sequence[Logged]) -> dict[str, Any] | None:
        if choice.writing.request.likeliest is None:
            return None
        return (logprobs.of_chat if self.chat else logprobs.of_completion)(self.tokenizer, logged)
