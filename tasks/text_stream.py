"""Tokens in, text out, as soon as each piece is certain."""

from collections.abc import Sequence
from typing import TextIO

from data.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"
LONGEST = 16
"""Tokens that are held back at most: if they are no text yet, they are bytes that are not UTF-8."""


class StopText(Exception):
    """A stop text has appeared; nothing from it on was written."""


class TextStream:
    """Writes the text of tokens. Bytes of an unfinished character, and what may begin a stop text, are held back."""

    def __init__(self, tokenizer: Tokenizer, out: TextIO, stop: Sequence[str] = ()):
        self.tokenizer, self.out, self.stop = tokenizer, out, [text for text in stop if text]
        self._tokens: list[int] = []
        """Those that end within a character, or none."""
        self._told = 0
        """Characters of their text that are no longer in question."""
        self._before: list[int] = []
        """Tokens that stood before them: alone, a token may lose the space that it begins with."""
        self._text_before = ""
        self._held = ""
        self.length = 0
        """Characters taken in so far."""

    def add(self, row: int, token: int) -> None:
        """Take the next token. Raises StopText once a stop text is complete."""
        self._tokens.append(token)
        news = self._news(last=len(self._tokens) == LONGEST)
        self._held += news
        self.length += len(news)
        found = [at for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._write(self._held[: min(found)])
            self._held, self._tokens, self._told = "", [], 0
            raise StopText
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        self._write(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def finish(self) -> None:
        """Write what was held back; another text may follow."""
        self._write(self._held + self._news(last=True))
        self._held = self._text_before = ""
        self._before = []

    def close(self) -> None:
        """Write what was held back, and end the line."""
        self.finish()
        self._write("\n")

    def _news(self, last: bool) -> str:
        """What the tokens add to the text, as far as later ones cannot change it; all of it if they are the last."""
        text = self.tokenizer.decode(self._before + self._tokens)[len(self._text_before) :]
        if last or not text.endswith(INCOMPLETE):
            news = text[self._told :]
            self._before, self._tokens, self._told = self._tokens, [], 0
            self._text_before = self.tokenizer.decode(self._before)
            return news
        certain = text.rstrip(INCOMPLETE)
        news, self._told = certain[self._told :], max(self._told, len(certain))
        return news

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
