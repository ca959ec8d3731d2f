"""The device under measurement, and its clock."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"


def synchronize() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], Any], repeats: int) -> float:
    """Median time of an action whose first call has been made."""
    taken = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        taken.append(time.perf_counter() - start)
    return median(taken)


def first_line(error: Exception) -> str:
    """An error as a cell of a table."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
