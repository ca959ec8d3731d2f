"""`python -m tasks embed` in small chunks, in a forked process; it can be killed in the middle."""

import os
import signal
from pathlib import Path

import tasks.embed_parts
from tasks.__main__ import main

CHUNK_TEXTS = 8


def embed(arguments: list[str], written: str = "", kill_after: int = -1) -> None:
    """Adds the number of each chunk that is written to the file `written`; dies before the one after `kill_after`."""
    tasks.embed_parts.CHUNK_TEXTS = CHUNK_TEXTS
    write = tasks.embed_parts.Parts.write
    left = kill_after

    def counted(parts, chunk, *args) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        write(parts, chunk, *args)
        if written:
            with Path(written).open("a") as file:
                file.write(f"{chunk.number}\n")

    tasks.embed_parts.Parts.write = counted
    raise SystemExit(main(["embed", *arguments]))
