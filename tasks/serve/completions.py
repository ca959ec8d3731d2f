"""POST /v1/completions and /v1/chat/completions: what is asked for."""

import asyncio
from typing import Any

from data.prompt import Prompt
from model.decoder import Request
from model.sampling import Sampling, sequence_key
from tasks.serve.answer import Answer
from tasks.serve.chat import Template
from tasks.serve.choice import Choice
from tasks.serve.errors import refuse
from tasks.serve.inputs import check_length, check_model, off_loop, read_items
from tasks.serve.limits import MAX_CHOICES
from tasks.serve.requests import ChatRequest, CompletionRequest, WritingRequest
from tasks.serve.served import Served
from tasks.serve.writing_queue import Writing, WritingQueue

DEFAULT_TOKENS = 16
"""Of a completion that does not say how many, as at OpenAI."""


async def complete(served: Served, queue: WritingQueue | None, request: CompletionRequest) -> Answer:
    """Start the completions of a request."""
    queue = _check(served, queue, request)
    most = request.max_tokens or DEFAULT_TOKENS
    prompts = await off_loop(request.prompt, _read, served, request, most)
    requests = _requests(request, [prompt for prompt, _ in prompts], most, request.logprobs)
    return _start(served, queue, prompts, requests, request.stops, chat=False)


async def chat(served: Served, queue: WritingQueue | None, template: Template, request: ChatRequest) -> Answer:
    """Start the answers to a conversation."""
    queue = _check(served, queue, request)
    if "chat" not in served.abilities:
        raise refuse(f"the model {served.name} has not learned to answer; it has /v1/completions", "model")
    prompt = await off_loop([message.text for message in request.messages], template.prompt, request.messages)
    asked = request.max_completion_tokens or request.max_tokens
    _check_length(served, prompt, "messages", "messages", asked or 1)
    most = asked or served.longest - len(prompt.tokens)
    requests = _requests(request, [prompt], most, (request.top_logprobs or 0) if request.logprobs else None)
    return _start(served, queue, [(prompt, "")], requests, [*request.stops, *template.stops], chat=True)


def _read(served: Served, request: CompletionRequest, most: int) -> list[tuple[Prompt, str]]:
    """Each prompt, and the text of it that is echoed."""
    found = []
    for where, item in read_items(served, request.prompt, "prompt"):
        prompt = served.prompt(item)
        _check_length(served, prompt, where, "prompt", most)
        echo = "" if not request.echo else item if isinstance(item, str) else served.tokenizer.decode(item)
        found.append((prompt, echo))
    return found


def _check(served: Served, queue: WritingQueue | None, request: WritingRequest) -> WritingQueue:
    check_model(served, request.model)
    if queue is None:
        others = " and ".join(
            path
            for path, there in (("/v1/embeddings", served.embedder), ("/classify", served.classifier))
            if there is not None
        )
        raise refuse(f"the model {served.name} does not complete text; it has {others}", "model")
    return queue


def _check_length(served: Served, prompt: Prompt, where: str, param: str, more: int) -> None:
    """What an encoder reads takes no room from what the decoder writes."""
    if prompt.source is not None:
        check_length(served.longest, len(prompt.source), where, param)
        check_length(served.longest, len(prompt.tokens), "the start of the answer", param, more)
    else:
        check_length(served.longest, len(prompt.tokens), where, param, more)


def _requests(asked: WritingRequest, prompts: list[Prompt], most: int, likeliest: int | None) -> list[Request]:
    """n for each prompt. Choices of one seed differ from each other, and each is the same again next time."""
    each = asked.n or 1
    if len(prompts) * each > MAX_CHOICES:
        raise refuse(
            f"{len(prompts)} prompts times n {each} are more than {MAX_CHOICES} completions: ask for fewer", "n"
        )
    requests = []
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(each)):
        sampling = Sampling(
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=asked.top_p,
            seed=None if asked.seed is None else sequence_key(asked.seed, number),
        )
        requests.append(Request(prompt.tokens, prompt.source, most, prompt.stop_ids, sampling, likeliest=likeliest))
    return requests


def _start(
    served: Served, queue: WritingQueue, prompts: list[tuple[Prompt, str]], requests: list[Request], stops: list[str],
    chat: bool,
) -> Answer:  # fmt: skip
    news, each = asyncio.Queue[Any](), len(requests) // len(prompts)
    choices = [
        Choice(Writing(request, number, news), served.tokenizer, stops, prompts[number // each][1])
        for number, request in enumerate(requests)
    ]
    queue.start([choice.writing for choice in choices])
    read = sum(len(prompt.source if prompt.source is not None else prompt.tokens) for prompt, _ in prompts)
    return Answer(served.name, served.tokenizer, choices, queue, news, read, chat)
