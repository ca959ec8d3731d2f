"""What a server accepts."""

import os
from dataclasses import dataclass, fields
from pathlib import Path

from config import ConfigError

MAX_INPUTS = 2048
"""Inputs of one embedding request, as at OpenAI."""
MAX_TOKENS = 8192
"""Tokens of one input, as at OpenAI; less if the model has fewer positions."""
MAX_CHOICES = 128
"""Completions that one request may ask for: prompts times n."""
MAX_STOPS = 4
"""Stop texts of one request, as at OpenAI."""
KEYS_VARIABLE = "GROUNDWORK_API_KEYS"


@dataclass(frozen=True)
class Limits:
    max_batch_tokens: int = 8192
    """Tokens embedded, or read as prompts, at once, in passes that suit the device. A longer input goes alone."""
    max_batch_rows: int = 32
    """Completions that are written at once; each keeps its keys and values in memory."""
    max_waiting_tokens: int = 1 << 20
    """Waiting tokens beyond which requests are turned away."""
    max_body_bytes: int = 32 << 20
    timeout: float = 120.0
    """Seconds that a request may take, waiting included."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                option = field.name.replace("_", "-")
                raise ConfigError(
                    f"--{option} {getattr(self, field.name):g} is not above 0: give more, or leave it out"
                )


def accepted_keys(key: str | None, file: Path | None) -> tuple[str, ...]:
    """The API keys of the command line, or else those of the environment; none: everyone is let in.

    Raises ConfigError for an empty key, as of a shell variable that is not set.
    """
    if key is not None:
        if not key.strip():
            raise ConfigError("--api-key is empty: give a key, or leave the option out to let everyone in")
        return (key.strip(),)
    return read_keys(file) if file else tuple(os.environ.get(KEYS_VARIABLE, "").replace(",", " ").split())


def read_keys(path: Path) -> tuple[str, ...]:
    """The API keys in a file, one a line. Raises ConfigError if it cannot be read or has none."""
    try:
        keys = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-keys {path}: cannot be read: {error}") from None
    if not keys:
        raise ConfigError(f"--api-keys {path}: has no key: write one on each line")
    return keys
