"""Giving a whole file its name in place of nothing, on file systems without hard links: exFAT, some of SMB and FUSE.

Where the kernel can rename without replacing, that does it. Else whoever creates a claim beside the name may look
whether it is free, and rename. A claim that stays, since its process died in between, is never taken over: the process
may only be asleep. It has the name of a temporary file, which `vacuum` removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system without hard links says when it is asked for one."""
CLAIM_PREFIX = ".tmp-claim-"

# Many times what a look and a rename take.
_CLAIMED_S = 0.5
_NOT_THERE = NO_LINKS | {errno.EINVAL}
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCL = -100, 1, 4


def take_name(whole: str, path: str) -> None:
    """Give a whole file the name it is to have, if nothing has that name; it may keep its own beside it.

    Raises:
        FileExistsError: something has it, or another process is about to give it.
        OSError: it cannot be given.
    """
    try:
        os.link(whole, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        rename_exclusively(whole, path)


def rename_exclusively(whole: str, path: str) -> None:
    """Give a whole file another name of its folder's file system, if nothing has that name.

    Raises:
        FileExistsError: something has it, or another process is about to give it.
        OSError: it cannot be renamed.
    """
    try:
        _rename_without_replacing(whole, path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        _rename_under_claim(whole, path)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable, where its file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    finally:
        os.close(descriptor)


def _rename_without_replacing(whole: str, path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(whole), os.fsencode(path))
    if sys.platform == "darwin":
        failed = libc.renamex_np(*names, _RENAME_EXCL)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def _rename_under_claim(whole: str, path: str) -> None:
    folder, name = os.path.split(path)
    claim = os.path.join(folder, f"{CLAIM_PREFIX}{name}")
    deadline = time.monotonic() + _CLAIMED_S
    while True:
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    try:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.rename(whole, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(claim)
