"""Give a finished file its final name without ever replacing another file, also on file systems without hard links.

A hard link fails if the name is taken, so it is the first choice; exFAT and some SMB and FUSE mounts have none. There
the kernel's rename-without-replacing is tried. Where that is missing too, a process creates a claim file beside the
name (exclusively), and only its holder may check that the name is free and rename. A claim left by a process that died
is never taken over, since the process may only be suspended; it is named like a temporary file, which `vacuum` removes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""Error numbers with which a file system says that it has no hard links."""
CLAIM_PREFIX = ".tmp-claim-"

# How long to wait for another process's claim: many times what its check and rename take.
_CLAIMED_S = 0.5
# EINVAL: renameat2 on a file system that does not know its flags, or fsync on one that cannot sync folders.
_NOT_THERE = NO_LINKS | {errno.EINVAL}
# From <fcntl.h> and <linux/fs.h>, and <sys/stdio.h> on macOS: Python has no wrapper for either call.
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCL = -100, 1, 4


def take_name(whole: str, path: str) -> None:
    """Give a finished file its final name if the name is free. The old name may stay beside it, as a hard link.

    Raises:
        FileExistsError: the name is taken, or another process is just taking it.
        OSError: the file cannot be linked or renamed.
    """
    try:
        os.link(whole, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        rename_exclusively(whole, path)


def rename_exclusively(whole: str, path: str) -> None:
    """Rename a file within its file system, if the new name is free.

    Raises:
        FileExistsError: the name is taken, or another process is just taking it.
        OSError: the file cannot be renamed.
    """
    try:
        _rename_without_replacing(whole, path)
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        _rename_under_claim(whole, path)


def sync_folder(folder: str) -> None:
    """Make a folder's entries durable, as far as its file system can.

    fsync of a file saves its bytes; that its name survives a power cut needs fsync of the folder.
    """
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
        # lexists, not exists: a dangling symlink also has the name, and the rename would replace it.
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        os.rename(whole, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(claim)
