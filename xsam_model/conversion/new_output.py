"""Writes files and folders that appear whole or not at all, and overwrite nothing."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xsam_model.conversion.checkpoints import CheckpointError

# A generous allowance for configuration, tokenizer and model card.
OTHER_BYTES = 64 * 2**20


def check_new_folder(output: Path) -> None:
    """Refuse a folder that is not empty, and anything that exists and is not a folder.

    Raises:
        CheckpointError: says which it is.
    """
    if output.exists() and not output.is_dir():
        raise CheckpointError(f"--output: {output} is a file; a folder is to be written")
    if output.is_dir() and any(output.iterdir()):
        raise CheckpointError(f"--output: {output} is not empty, and nothing is ever overwritten: choose another")


def check_new_file(output: Path) -> None:
    """Refuse a file that exists.

    Raises:
        CheckpointError: if it does.
    """
    if output.exists():
        raise CheckpointError(f"--output: {output} exists, and nothing is ever overwritten: choose another")


@contextmanager
def new_output(output: Path, num_bytes: int) -> Iterator[Path]:
    """Provide a temporary path to write to, which becomes the output at the end or is removed on any exception.

    Args:
        output: file or folder; its parents are created at the end.
        num_bytes: size of the weights, for which there must be free space.

    Raises:
        CheckpointError: if there is too little space.
    """
    output = output.absolute()
    place = next(parent for parent in output.parents if parent.is_dir())
    free = shutil.disk_usage(place).free
    if free < num_bytes + OTHER_BYTES:
        raise CheckpointError(f"--output: {num_bytes + OTHER_BYTES:,} bytes are needed, {free:,} are free in {place}")
    # On the same file system as the output, so that the final rename is atomic. mkdtemp makes only the outer folder
    # private; what is written inside has the usual permissions.
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=place))
    try:
        yield temporary / output.name
        output.parent.mkdir(parents=True, exist_ok=True)
        (temporary / output.name).replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_folder(output: Path, *, is_owner: bool = True) -> Iterator[Path]:
    """Provide an empty folder `writing-NAME` beside the output, which gets the output's name at the end.

    After an exception or a kill it stays, to be looked at; the next writer of the same output removes it first.

    Args:
        output: folder that must not exist, or be empty.
        is_owner: False in a process that adds files to a folder that another process creates and renames; the caller
            makes them wait for each other.

    Raises:
        CheckpointError: another owner is writing this output.
    """
    beside = output.with_name(f"writing-{output.name}")
    if not is_owner:
        yield beside
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(output, beside.with_name(f".{beside.name}.lock")):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        beside.rename(output)


@contextmanager
def _alone(output: Path, lock: Path) -> Iterator[None]:
    """Hold a lock, which the death of this process releases too, or refuse."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Without a name it is the lock of one who has just ended; a third may hold a new one by now.
            is_held = os.fstat(file.fileno()).st_nlink == 0
        except BlockingIOError:
            is_held = True
        except OSError:  # a file system without locks
            is_held = False
        if is_held:
            raise CheckpointError(f"--output: another process is writing {output}: wait for it, or choose another")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
