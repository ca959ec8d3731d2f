"""Files that are there whole or not at all, also after a crash."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"
MOST_OPEN_FILES = 1 << 17


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name; at the end of the block make it durable and rename it."""
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    with atomic_file(path) as file:
        file.write(content.encode())


def most_open_files() -> int:
    """How many files this process may have open, after raising its soft limit to the hard one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = [limit for limit in (hard, MOST_OPEN_FILES) if limit != resource.RLIM_INFINITY]
    if soft != resource.RLIM_INFINITY and soft < min(limits):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits), hard))
    return min(limits)


def sync(path: Path) -> None:
    """Put a file or folder on the disk, and forget the cached copy, so that reading it back reads the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
