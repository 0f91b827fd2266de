"""Where an export is written: beside its target, under a name that begins with a dot, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipelines.storage import StorageError, Store, protocol_of

_OF_THE_TABLE = ("annotations", "images", "_runs")


def check_target(uri: str, store: Store) -> Path:
    """Return the path of a target that may be written.

    Args:
        uri: path of a file or folder that does not exist yet.
        store: the output that is exported.

    Raises:
        StorageError: it exists, is no local path, its folder does not exist, or it lies inside the table.
    """
    if protocol_of(uri) != "file":
        raise StorageError(f"{uri}: exports are written to this machine's disks; name a local path, and copy it then")
    path = Path(os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))
    if os.path.lexists(path):
        raise StorageError(f"{path} exists already; name a new file or folder, or remove it")
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent} is not a folder, so {path.name} cannot be written there")
    if store.is_local:
        inside = [part for part in _OF_THE_TABLE if path.is_relative_to(Path(store.path(part)))]
        if inside:
            raise StorageError(f"{path} lies inside the table's own folder {inside[0]}; name another place")
    return path


@contextlib.contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """Give a new folder beside a target, and remove it with all that is still in it.

    Raises:
        StorageError: it cannot be made, or the disk is full.
    """
    folder = target.with_name(f".{target.name[:100]}.partial-{secrets.token_hex(4)}")
    try:
        folder.mkdir()
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(whole: Path, target: Path) -> None:
    """Give a whole file or folder its name.

    Raises:
        StorageError: meanwhile something else has that name.
    """
    try:
        if whole.is_dir():
            if os.path.lexists(target):
                raise FileExistsError
            whole.rename(target)
            return
        with whole.open("rb") as file:
            os.fsync(file.fileno())
        os.link(whole, target)
    except FileExistsError:
        raise StorageError(f"{target} was made by another meanwhile; it is left as it is") from None
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
