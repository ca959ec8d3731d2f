"""From the texts or token ids of a request to rows of tokens within the model's limits."""

from collections.abc import Callable

from tasks.serve.errors import ApiError, refuse
from tasks.serve.limits import MAX_INPUTS
from tasks.serve.requests import Input
from tasks.serve.served import Served


def check_model(served: Served, name: str) -> None:
    """Raises ApiError 404 for another name."""
    if name != served.name:
        raise ApiError(
            404,
            f"The model `{name}` does not exist; this server has `{served.name}`",
            param="model",
            code="model_not_found",
        )


def read_rows(
    served: Served,
    given: Input,
    param: str,
    encode: Callable[[str], list[int]],
    surround: Callable[[list[int]], list[int]],
) -> list[list[int]]:
    """One row of tokens for each input: `encode` of texts, `surround` of token ids. Raises ApiError 400 for empty texts,
    unknown ids, and more inputs or longer ones than allowed."""
    items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    if len(items) > MAX_INPUTS:
        raise refuse(f"{param} has {len(items)} entries, more than {MAX_INPUTS}: send several requests", param)
    rows = []
    for number, item in enumerate(items):
        where = param if items is not given else f"{param}[{number}]"
        if isinstance(item, str):
            if not item:
                raise refuse(f"{where} is an empty text", param)
            rows.append(encode(item))
        else:
            assert isinstance(item, list)
            rows.append(surround(_checked(served, item, where, param)))
        check_length(served, len(rows[-1]), where, param)
    return rows


def check_length(served: Served, length: int, where: str, param: str, more: int = 0) -> None:
    """Raises ApiError 400 if `length` tokens and `more` new ones do not fit."""
    if length + more > served.longest:
        asked = f"{length} tokens" + (f" and {more} more are asked for" if more else "")
        raise refuse(
            f"This model's maximum context length is {served.longest} tokens, but {where} has {asked}: shorten it",
            param,
            "context_length_exceeded",
        )


def _checked(served: Served, tokens: list, where: str, param: str) -> list[int]:
    unknown = next((token for token in tokens if not 0 <= token < served.vocab_size), None)
    if unknown is not None:
        raise refuse(f"{where} has the token id {unknown}; this model's go from 0 to {served.vocab_size - 1}", param)
    return tokens
