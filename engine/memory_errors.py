"""A device or a host that has no memory left: which rank it was, and what to do about it."""

import re

import torch

from config.errors import GroundworkError


class OutOfMemory(GroundworkError):
    """A rank's device, or on a CPU its host, has no memory left."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of Python, or of torch on a CPU, which raises a bare RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def out_of_memory(error: BaseException, rank: int, host: str) -> OutOfMemory:
    """Outside a step, as while the model is built; in a step engine/memory.py says more."""
    wanted = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error), re.IGNORECASE)
    return OutOfMemory(
        f"rank {rank} on {host} is out of memory{f' (it asked for {wanted[1]} more)' if wanted else ''}: "
        "python -m launch plan RECIPE tells what fits and is fastest: a smaller batch.micro_batch_size, "
        "engine.activation_checkpointing selective or full, another engine.ds_config, or more devices"
    )
