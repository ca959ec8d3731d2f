"""Run a function on several ranks over gloo, as a launcher would: fresh processes with the rendezvous variables set."""

import importlib
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

ROOT = Path(__file__).parents[1]


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout: float = 280) -> list[Any]:
    """Each rank's return value of `function(*args)`, which must live in an importable module (tests/workers)."""
    with tempfile.TemporaryDirectory() as folder:
        call = Path(folder) / "call"
        call.write_bytes(pickle.dumps((function.__module__, function.__name__, args)))
        port = str(free_port())
        processes = []
        for rank in range(world_size):
            command = [sys.executable, "-m", "tests.ranks", str(call), f"{folder}/result_{rank}"]
            with open(f"{folder}/stderr_{rank}", "w") as stderr:
                environ = rank_environ(rank, world_size, port)
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environ, stderr=stderr))
        errors = []
        for rank, process in enumerate(processes):
            try:
                code = process.wait(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                code = f"nothing after {timeout:g} s"
            if code:
                errors.append(f"rank {rank} exited with {code}:\n{Path(f'{folder}/stderr_{rank}').read_text()[-3000:]}")
        assert not errors, "\n".join(errors)
        return [pickle.loads(Path(f"{folder}/result_{rank}").read_bytes()) for rank in range(world_size)]


def rank_environ(rank: int, world_size: int, port: str) -> dict[str, str]:
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _main(call: str, result: str) -> None:
    module, name, args = pickle.loads(Path(call).read_bytes())
    value = getattr(importlib.import_module(module), name)(*args)
    if dist.is_initialized():
        dist.destroy_process_group()
    Path(result).write_bytes(pickle.dumps(value))
    os._exit(0)  # as train.py does: an orderly exit may abort in a process group's thread


if __name__ == "__main__":
    _main(*sys.argv[1:])
