"""Processes forked from a server that has imported what a training imports and done nothing else: each starts 4 s sooner."""

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

SERVER = multiprocessing.get_context("forkserver")
# torch and DeepSpeed import compilers and Muon when they make an optimiser.
SERVER.set_forkserver_preload(
    [
        "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer", "config.command_line", "config.plan",
        "engine.debugging", "engine.inspection", "engine.self_check", "engine.monitor", "engine.runs", "engine.sample",
        "deepspeed.module_inject.auto_ep_layer", "numpy.ma", "tests.forked",
    ]
)  # fmt: skip
# A library reads its number of threads when it is loaded, so all processes have one.
LOADED_WITH = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def start(files: Path, environ: dict[str, str], function: Callable[..., Any], *args: Any) -> BaseProcess:
    """Run `function(*args)` with this environment, its standard output in `files`.out, its errors in `files`.err."""
    process = SERVER.Process(target=_run, args=(str(files), {**environ, **LOADED_WITH}, function, args))
    with mock.patch.dict(os.environ, LOADED_WITH):
        process.start()
    return process


def finish(process: BaseProcess, timeout: float) -> int:
    """The exit code; negative if it was killed, by us after `timeout` seconds."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(files: str, environ: dict[str, str], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    gc.freeze()  # to look through what the server has imported for garbage would copy all of it
    for stream, name in ((1, f"{files}.out"), (2, f"{files}.err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environ)
    function(*args)
    sys.stdout.flush()
    os._exit(0)  # as train.py does: an orderly exit may abort in a process group's thread
