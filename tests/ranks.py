"""Run a function on several ranks over gloo, as a launcher would: processes with the rendezvous variables set."""

import os
import pickle
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import forked


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 280) -> list[Any]:
    """Each rank's return value of `function(*args)`, which must live in an importable module (tests/workers)."""
    port = str(free_port())
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(rank) for rank in range(world_size)]
        environs = [{**os.environ, **rank_environ(rank, world_size, port)} for rank in range(world_size)]
        processes = [
            forked.start(file, environ, _keep_result, f"{file}.result", function, args)
            for file, environ in zip(files, environs, strict=True)
        ]
        codes = [forked.finish(process, timeout) for process in processes]
        errors = [
            f"rank {file.name} exited with {code}:\n{Path(f'{file}.err').read_text()[-3000:]}"
            for file, code in zip(files, codes, strict=True)
            if code
        ]
        assert not errors, "\n".join(errors)
        return [pickle.loads(Path(f"{file}.result").read_bytes()) for file in files]


def rank_environ(rank: int, world_size: int, port: str) -> dict[str, str]:
    """What a launcher sets."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _keep_result(result: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch.distributed as dist

    value = function(*args)
    if dist.is_initialized():
        dist.destroy_process_group()
    Path(result).write_bytes(pickle.dumps(value))
