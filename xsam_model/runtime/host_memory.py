"""Tunes malloc for large tensors on the CPU."""

from __future__ import annotations

import ctypes
from functools import lru_cache

# Parameters of mallopt (malloc.h of glibc).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next allocation, instead of returning it to the system.

    A network on the CPU allocates and frees the same large tensors in every pass. By default each is mapped anew, and
    touching its fresh pages can cost as much as computing with them. With this setting the process stays at its peak
    size. Allocations of 1 GiB and more are not affected.

    Returns:
        Whether it took effect, which it does with glibc only.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    # The trim threshold is the largest int, so the top of the heap is never returned; setting a threshold also ends
    # glibc's own adjustment of it.
    settings = ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    accepted = [mallopt(parameter, value) for parameter, value in settings]
    return accepted == [1, 1, 1]
