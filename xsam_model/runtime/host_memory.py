"""How this process's allocator treats large tensors on the CPU."""

from __future__ import annotations

import ctypes
from functools import lru_cache

# mallopt's parameters (glibc, malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next allocation, instead of giving it back to the system.

    A network on the CPU frees and takes the same large tensors in every pass, and by default each of them is mapped
    anew: touching its fresh pages can cost as much as computing with them. The process then stays as large as it once
    was, and no larger. Has no effect on allocations of 1 GiB and more.

    Returns:
        Whether it took effect: only glibc is known.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    accepted = [mallopt(parameter, value) for parameter, value in settings]
    return accepted == [1, 1, 1]


__all__ = ["keep_freed_memory"]
