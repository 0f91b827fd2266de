"""Check where an export may be written."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.errors import StorageError
from pipelines.storage.filesystems import protocol_of
from pipelines.storage.local_files import check_new
from pipelines.storage.store import Store

_OF_THE_TABLE = ("annotations", "images", "_runs")


def check_target(uri: str, store: Store) -> Path:
    """Check that an export's target can be written, and return its path.

    Args:
        uri: path of a file or folder that does not exist yet.
        store: the output that is exported.

    Raises:
        StorageError: the target exists, is not a local path, has no parent folder, or lies inside the table.
    """
    if protocol_of(uri) != "file":
        raise StorageError(f"{uri}: exports are written to this machine's disks; name a local path, and copy it then")
    path = Path(os.path.abspath(os.path.expanduser(uri.removeprefix("file://"))))
    check_new(path)
    if store.is_local:
        inside = [part for part in _OF_THE_TABLE if path.is_relative_to(Path(store.path(part)))]
        if inside:
            raise StorageError(f"{path} lies inside the table's own folder {inside[0]}; name another place")
    return path
