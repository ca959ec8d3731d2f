"""Tokens in, text out, as soon as each piece is certain."""

from collections.abc import Sequence
from typing import TextIO

from data.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"


class StopText(Exception):
    """A stop text has appeared; nothing from it on was written."""


class TextStream:
    """Writes the text of tokens. Bytes of an unfinished character, and what may begin a stop text, are held back."""

    def __init__(self, tokenizer: Tokenizer, out: TextIO, stop: Sequence[str] = ()):
        self.tokenizer, self.out, self.stop = tokenizer, out, [text for text in stop if text]
        self._tokens: list[int] = []
        self._held = ""
        self.length = 0
        """Characters taken in so far."""

    def add(self, row: int, token: int) -> None:
        """Take the next token. Raises StopText once a stop text is complete."""
        self._tokens.append(token)
        text = self.tokenizer.decode(self._tokens)
        if text.endswith(INCOMPLETE) and len(self._tokens) < 4:
            return
        self._tokens.clear()
        self._held += text
        self.length += len(text)
        found = [at for stop in self.stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._write(self._held[: min(found)])
            self._held = ""
            raise StopText
        keep = max((_overlap(self._held, stop) for stop in self.stop), default=0)
        self._write(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def finish(self) -> None:
        """Write what was held back."""
        self._write(self._held + (self.tokenizer.decode(self._tokens) if self._tokens else ""))
        self._held = ""
        self._tokens.clear()

    def close(self) -> None:
        """Write what was held back, and end the line."""
        self.finish()
        self._write("\n")

    def _write(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
