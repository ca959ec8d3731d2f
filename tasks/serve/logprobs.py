"""Log-probabilities of tokens, in the shapes of completions and of chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.tokenizer import Tokenizer
from tasks.text_stream import INCOMPLETE


@dataclass(frozen=True)
class Logged:
    """A token of a text."""

    token: int
    logprob: float | None
    """None of a prompt's first token, which nothing predicts."""
    likeliest: Sequence[tuple[int, float]]
    offset: int
    """Characters of the text before it."""


def of_completion(tokenizer: Tokenizer, logged: Sequence[Logged]) -> dict[str, list]:
    """Parallel lists; the likeliest tokens with the one that was taken, by their texts."""
    return {
        "tokens": [token_text(tokenizer, one.token) for one in logged],
        "token_logprobs": [one.logprob for one in logged],
        "top_logprobs": [None if one.logprob is None else _table(tokenizer, one) for one in logged],
        "text_offset": [one.offset for one in logged],
    }


def of_chat(tokenizer: Tokenizer, logged: Sequence[Logged]) -> dict[str, Any]:
    content = [
        {
            **_entry(tokenizer, one.token, one.logprob),
            "top_logprobs": [_entry(tokenizer, token, value) for token, value in one.likeliest],
        }
        for one in logged
    ]
    return {"content": content, "refusal": None}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of one token; of a part of a character its name in the vocabulary."""
    text = _text(tokenizer, token)
    return tokenizer.name_of(token) or text if INCOMPLETE in text else text


def _text(tokenizer: Tokenizer, token: int) -> str:
    """What the token adds to a text: alone, it may lose the space that it begins with."""
    before = tokenizer.encode("a")
    return tokenizer.decode([*before, token])[len(tokenizer.decode(before)) :]


def _table(tokenizer: Tokenizer, one: Logged) -> dict[str, float | None]:
    likeliest = {token_text(tokenizer, token): value for token, value in one.likeliest}
    return {token_text(tokenizer, one.token): one.logprob} | likeliest


def _entry(tokenizer: Tokenizer, token: int, logprob: float | None) -> dict[str, Any]:
    text = _text(tokenizer, token)
    whole = INCOMPLETE not in text
    return {
        "token": token_text(tokenizer, token), "logprob": logprob, "bytes": list(text.encode()) if whole else None,
    }  # fmt: skip
