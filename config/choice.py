"""An automatic choice carries the reason it was made, printed once at the start of a run."""

from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    value: T
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"
