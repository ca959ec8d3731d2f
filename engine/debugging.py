"""What `--debug` and `--debug-rank` add to a run: determinism, and a terminal for one rank."""

import os
import pdb
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from config.errors import ConfigError, DataError
from engine.dist import World


def make_deterministic() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only warns where a GPU has no deterministic form, as for the cumulative sum of top-p sampling.
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def debugger(world: World, rank: int) -> Iterator[None]:
    """Give the launch's terminal to one rank: there `breakpoint()` stops, and an exception opens a post-mortem if the
    input is a terminal. The other ranks read nothing and pass over every `breakpoint()`."""
    if world.rank != rank:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.breakpointhook = lambda *args, **named: None
        yield
        return
    try:
        yield
    except (BdbQuit, ConfigError, DataError):
        raise
    except Exception as error:
        if sys.stdin.isatty():
            first: BaseException = error
            while first.__context__:
                first = first.__context__  # where it happened, under what was said about it since
            traceback.print_exception(first)
            print(f"{error}\npost-mortem of rank {rank}: `up`, `p NAME`, `q` ends the run", flush=True)
            pdb.post_mortem(first.__traceback__)
        raise
