"""Atomic, no-clobber writes of local files and folders.

They are written beside their target, under a name that begins with a dot, and renamed once complete.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import StorageError
from pipelines.storage.exclusive_names import take_name


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Make a private temporary folder beside a target, and remove it at the end with all that is still in it.

    Raises:
        StorageError: the folder cannot be made, or the disk is full.
    """
    # Beside the target, not in TMPDIR: only within one file system is a rename atomic. The name is cut since a target
    # may already have the 255 bytes that most file systems allow.
    folder = target.with_name(f".{target.name[:100]}.partial-{secrets.token_hex(4)}")
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(whole: Path, target: Path, *, overwrite: bool = False) -> None:
    """Give a complete file or folder its final name, atomically.

    Args:
        whole: the complete file or folder, on the target's own file system.
        target: the final name.
        overwrite: whether a file may replace an existing one.

    Raises:
        StorageError: the name is taken, or it cannot be written.
    """
    try:
        if whole.is_dir():
            # A rename replaces an empty folder. A full one it refuses, so that a race here can lose no files.
            if os.path.lexists(target):
                raise FileExistsError
            whole.rename(target)
            return
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        if overwrite:
            whole.replace(target)
        else:
            take_name(str(whole), str(target))
    except FileExistsError:
        raise StorageError(f"{target} was made by another meanwhile; it is left as it is") from None
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
