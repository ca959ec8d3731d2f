"""Memory of a CPU run: what the process frees, it keeps."""

import ctypes

# Numbers of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let malloc reuse large blocks instead of handing them back; returns whether the C library can (glibc).

    By default glibc maps every block over 32 MB anew and trims the end of its heap, so each step would pay again for
    the pages of the same activations. The process stays at its peak memory in return.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
