"""POST /v1/completions and /v1/chat/completions."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from model.decoder import Request
from model.sampling import Sampling, sequence_key
from tasks.serve.chat import Template
from tasks.serve.errors import refuse
from tasks.serve.inputs import check_length, check_model, read_rows
from tasks.serve.limits import MAX_CHOICES
from tasks.serve.requests import ChatRequest, CompletionRequest, WritingRequest
from tasks.serve.served import Served
from tasks.serve.writing_queue import Writing, WritingQueue
from tasks.text_stream import StopText, TextStream

DEFAULT_TOKENS = 16
"""Of a completion that does not say how many, as at OpenAI."""


@dataclass
class Choice:
    """The text of one completion, as far as it is certain."""

    writing: Writing
    stream: TextStream
    out: StringIO
    end: str = ""

    def add(self, news: int | str | Exception) -> None:
        """Take a token or the end. Raises what went wrong in the model."""
        if isinstance(news, Exception):
            raise news
        try:
            if isinstance(news, int):
                self.stream.add(self.writing.number, news)
            else:
                self.stream.finish()
                self.end = news
        except StopText:
            self.writing.over, self.end = True, "stop"

    def take_text(self) -> str:
        """What is new since the last time."""
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        return text


@dataclass
class Answer:
    """The completions of one request, and the shape in which they are sent."""

    name: str
    choices: list[Choice]
    news: asyncio.Queue
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
                    self.written += isinstance(news, int)
                    choice.add(news)
                    yield choice
        finally:
            for choice in self.choices:
                choice.writing.over = True

    @property
    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.written
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.written, "total_tokens": total}

    async def whole(self) -> dict[str, Any]:
        async for _ in self.events():
            pass
        choices = []
        for number, choice in enumerate(self.choices):
            text = choice.take_text()
            said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            choices.append({"index": number, **said, "logprobs": None, "finish_reason": choice.end})
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self.head, "object": kind, "choices": choices, "usage": self.usage}

    async def chunks(self, include_usage: bool) -> AsyncGenerator[dict[str, Any], None]:
        """Pieces as they come; for each choice, the last one says why it ended."""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        head = {**self.head, "object": kind, **({"usage": None} if include_usage else {})}
        if self.chat:
            for number in range(len(self.choices)):
                yield {**head, "choices": [self._piece(number, {"role": "assistant", "content": ""}, None)]}
        async with aclosing(self.events()) as events:
            async for choice in events:
                text = choice.take_text()
                if text or choice.end:
                    said: Any = {"content": text} if self.chat else text
                    yield {**head, "choices": [self._piece(choice.writing.number, said, choice.end or None)]}
        if include_usage:
            yield {**head, "choices": [], "usage": self.usage}

    def _piece(self, number: int, said: Any, end: str | None) -> dict[str, Any]:
        return {"index": number, "delta" if self.chat else "text": said, "logprobs": None, "finish_reason": end}


def complete(served: Served, queue: WritingQueue | None, request: CompletionRequest) -> Answer:
    """Start the completions of a request."""
    queue = _check(served, queue, request)
    rows = read_rows(served, request.prompt, "prompt", encode=served.prompt, surround=list)
    longest = request.max_tokens or DEFAULT_TOKENS
    for row in rows:
        check_length(served, len(row), "prompt", "prompt", longest)
    return _start(served, queue, request, rows, lambda row: longest, request.stops, chat=False)


def chat(served: Served, queue: WritingQueue | None, template: Template, request: ChatRequest) -> Answer:
    """Start the answers to a conversation."""
    queue = _check(served, queue, request)
    row = template.tokens(request.messages)
    asked = request.max_completion_tokens or request.max_tokens
    check_length(served, len(row), "messages", "messages", asked or 1)
    stops = [*request.stops, *template.stops]
    return _start(served, queue, request, [row], lambda row: asked or served.longest - len(row), stops, chat=True)


def _check(served: Served, queue: WritingQueue | None, request: WritingRequest) -> WritingQueue:
    check_model(served, request.model)
    if queue is None:
        raise refuse(f"the model {served.name} does not complete text; it has /v1/embeddings", "model")
    return queue


def _start(
    served: Served, queue: WritingQueue, request: WritingRequest, rows: list[list[int]],
    new_tokens: Callable[[list[int]], int], stops: list[str], chat: bool,
) -> Answer:  # fmt: skip
    each, news = request.n or 1, asyncio.Queue[Any]()
    if len(rows) * each > MAX_CHOICES:
        raise refuse(f"{len(rows)} prompts times n {each} are more than {MAX_CHOICES} completions: ask for fewer", "n")
    choices = []
    for number, row in enumerate(row for row in rows for _ in range(each)):
        out = StringIO()
        writing = Writing(
            Request(row, None, new_tokens(row), (served.tokenizer.eod_id,), _sampling(request, number)), number, news
        )
        choices.append(Choice(writing, TextStream(served.tokenizer, out, stops), out))
    queue.start([choice.writing for choice in choices])
    return Answer(served.name, choices, news, sum(map(len, rows)), chat)


def _sampling(request: WritingRequest, number: int) -> Sampling:
    """Choices of one seed differ from each other, and each is the same again next time."""
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=request.top_p,
        seed=None if request.seed is None else sequence_key(request.seed, number),
    )
