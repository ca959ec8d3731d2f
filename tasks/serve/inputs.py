"""The texts or token ids of a request, within the model's limits."""

import asyncio
from collections.abc import Callable, Iterator, Sized
from typing import Any, TypeVar

from tasks.serve.errors import ApiError, refuse
from tasks.serve.limits import MAX_INPUTS
from tasks.serve.requests import Input
from tasks.serve.served import Served

Result = TypeVar("Result")
LARGE = 1 << 16
"""Characters that are tokenised in some milliseconds."""


async def off_loop(given: Any, read: Callable[..., Result], *args: Any) -> Result:
    """`read(*args)`, which tokenises `given`: of many characters in a thread, so that others are answered meanwhile."""
    sizes = [len(given)] if isinstance(given, str) else [len(item) if isinstance(item, Sized) else 1 for item in given]
    return await asyncio.to_thread(read, *args) if sum(sizes) > LARGE else read(*args)


def check_model(served: Served, name: str) -> None:
    """Raises ApiError 404 for another name."""
    if name != served.name:
        raise ApiError(
            404,
            f"The model `{name}` does not exist; this server has `{served.name}`",
            param="model",
            code="model_not_found",
        )


def read_items(served: Served, given: Input, param: str) -> Iterator[tuple[str, str | list[int]]]:
    """Each text or row of token ids, and what to call it. Raises ApiError 400 for empty texts, unknown ids, and more
    inputs than allowed."""
    items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    check_count(items, param)
    for number, item in enumerate(items):
        where = param if items is not given else f"{param}[{number}]"
        if isinstance(item, str):
            if not item:
                raise refuse(f"{where} is an empty text", param)
            yield where, item
        else:
            assert isinstance(item, list)
            yield where, _checked(served, item, where, param)


def check_count(items: Sized, param: str) -> None:
    if len(items) > MAX_INPUTS:
        raise refuse(f"{param} has {len(items)} entries, more than {MAX_INPUTS}: send several requests", param)


def check_length(longest: int, length: int, where: str, param: str, more: int = 0) -> None:
    """Raises ApiError 400 if `length` tokens and `more` new ones do not fit."""
    if length + more > longest:
        raise too_long(longest, length, where, param, f" and {more} more are asked for" if more else "")


def too_long(longest: int, length: int, where: str, param: str, more: str = "") -> ApiError:
    return refuse(
        f"This model's maximum context length is {longest} tokens, but {where} has {length} tokens{more}: shorten it",
        param,
        "context_length_exceeded",
    )


def _checked(served: Served, tokens: list, where: str, param: str) -> list[int]:
    unknown = next((token for token in tokens if not 0 <= token < served.vocab_size), None)
    if unknown is not None:
        raise refuse(f"{where} has the token id {unknown}; this model's go from 0 to {served.vocab_size - 1}", param)
    return tokens
