"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

KEPT_BYTES: Final = 32 * 1024 * 1024
BLOCK_BYTES: Final = 16 * 1024 * 1024
RESIDENT_BYTES: Final = 240 * 1024 * 1024
"""What a process may hold before it gives back all that it has freed."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed() -> bool:
    """Let glibc keep up to `KEPT_BYTES` of what is freed at the end of a heap, and take blocks of up to `BLOCK_BYTES` from its heaps.

    By default it gives both back to the system at once, and a process that takes and frees megabytes for each micro-batch pays for
    each page anew. Return whether there was a glibc to be told; another C library keeps its own ways.

    Source: mallopt(3).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, BLOCK_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def give_back_freed(above_bytes: int = RESIDENT_BYTES) -> bool:
    """Give all that is freed back to the system, if more than `above_bytes` are resident; return whether it was done.

    glibc has a heap for each few threads, and what `keep_freed` lets it keep counts for each of them: of 499 MB that a gateway held after a dozen
    faults, 117 were in use.

    Source: malloc_trim(3), proc(5).
    """
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        if pages * os.sysconf("SC_PAGE_SIZE") <= above_bytes:
            return False
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return False
    return True
