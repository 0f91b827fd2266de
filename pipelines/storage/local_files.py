"""Files and folders of this machine that appear whole or not at all, and in place of nothing else.

Written beside their target, under a name that begins with a dot, and named when they are whole.
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


def check_new(target: Path) -> None:
    """Check, before any work is done, that a file or folder can be written.

    Raises:
        StorageError: it exists, or its folder does not.
    """
    if os.path.lexists(target):
        raise StorageError(f"{target} exists already; name a new file or folder, or remove it")
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} is not a folder, so {target.name} cannot be written there")


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Give a new folder beside a target, for nobody else to read, and remove it with all that is still in it.

    Raises:
        StorageError: it cannot be made, or the disk is full.
    """
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
    """Give a whole file or folder its name.

    Args:
        whole: what was written, on the target's own file system.
        target: its name.
        overwrite: let a file take the place of another.

    Raises:
        StorageError: something else has that name, or it cannot be written.
    """
    try:
        if whole.is_dir():
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


def write_atomically(target: Path, data: bytes, *, overwrite: bool = False) -> None:
    """Write one file; as `publish`."""
    with temporary_beside(target) as place:
        whole = place / "whole"
        try:
            whole.write_bytes(data)
        except OSError as error:
            raise StorageError(f"{target} cannot be written: {error}") from error
        publish(whole, target, overwrite=overwrite)
