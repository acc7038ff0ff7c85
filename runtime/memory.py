"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
from typing import Final

KEPT_BYTES: Final = 32 * 1024 * 1024
BLOCK_BYTES: Final = 16 * 1024 * 1024
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
