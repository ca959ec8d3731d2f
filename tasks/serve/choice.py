"""One completion as it is written: its text as far as it is certain, and its tokens' log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO

from data.tokenizer import Tokenizer
from model.decoder import NewToken
from tasks.serve.logprobs import Logged
from tasks.serve.writing_queue import End, Writing
from tasks.text_stream import StopText, TextStream


@dataclass
class Choice:
    writing: Writing
    tokenizer: Tokenizer
    stops: Sequence[str]
    echo: str = ""
    """The prompt, if it stands before the completion."""
    end: str = ""
    """Why it ended."""
    logged: list[Logged] = field(default_factory=list)
    """Tokens whose text has not been taken yet."""
    sent: int = 0
    """Characters taken."""

    def __post_init__(self) -> None:
        self.out = StringIO()
        self.stream = TextStream(self.tokenizer, self.out, self.stops)
        self.out.write(self.echo)

    def add(self, news: NewToken | End) -> None:
        """Take a token or the end. Raises what went wrong in the model."""
        if isinstance(news, Exception):
            raise news
        try:
            if isinstance(news, NewToken):
                offset = len(self.echo) + self.stream.length
                if news.logprob is not None:
                    self.logged.append(Logged(news.token, news.logprob, news.likeliest, offset))
                self.stream.add(self.writing.number, news.token)
            else:
                self.stream.finish()
                self.end = news
        except StopText:
            self.writing.over, self.end = True, "stop"
            total = self.sent + len(self.out.getvalue())
            self.logged = [one for one in self.logged if one.offset < total]

    def take(self) -> tuple[str, list[Logged]]:
        """The text that is new since the last time, and its tokens if they are logged."""
        text = self.out.getvalue()
        self.out.seek(0)
        self.out.truncate()
        self.sent += len(text)
        taken = [one for one in self.logged if one.offset < self.sent or self.end]
        self.logged = self.logged[len(taken) :]
        return text, taken
