"""Remove files that were written for a published table and belong to it no more; erase images from its log."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.errors import StorageError
from pipelines.lakehouse.delta_log import ForeignLogError, hide_statistics, read_delta_log
from pipelines.lakehouse.publish import publish_delta
from pipelines.layout import KINDS, Kind, current_folder, delta_log_folder, delta_log_name, is_current_file
from pipelines.storage.store import Store
from pipelines.table.leftovers import VACUUM_GRACE_S, Removal, old_enough


def vacuum_published(store: Store, *, older_than_s: float = VACUUM_GRACE_S, dry_run: bool = False) -> Removal:
    """Remove the files beside the committed ones that belong to no table any more.

    They stay until the version that removed them is old enough, for whoever reads the one before; files that no version
    ever named until they are old enough themselves, for whoever is about to name them.

    Args:
        store: the output.
        older_than_s, dry_run: as for ``table.leftovers.vacuum``.

    Raises:
        StorageError: the output cannot be read, or the store does not report when an object was written.
    """
    removal = Removal()
    for kind in KINDS:
        # Files first: a version that is written between the two readings then names those that were seen.
        files = _current_files(store, kind)
        if not files:
            continue
        try:
            log = read_delta_log(store, kind)
        except ForeignLogError:  # which files it names is for whoever wrote it to say
            continue
        except StorageError as error:  # what else was removed is told all the same
            removal.failed.append(f"what no published table needs any more: {error}")
            continue
        witnesses = {
            name: delta_log_name(kind, log.removed[name]) if name in log.removed else name
            for name in files
            if name not in log.files
        }
        old, _ = old_enough(store, sorted(set(witnesses.values())), older_than_s, dry_run=dry_run)
        removal.kept += [name for name, witness in witnesses.items() if witness not in old]
        removal.remove(store, [name for name, witness in witnesses.items() if witness in old], dry_run=dry_run)
    return removal


def erase_published(store: Store) -> tuple[list[str], list[str]]:
    """Publish an output without the images that are being forgotten, if it was published, and remove what shows them.

    To be called when all shards are committed without them, and before files of the earlier commits are removed.

    Returns:
        The names of files that were removed, and of logs of others, which were not looked into.

    Raises:
        DamagedError, StorageError: as for ``publish_delta``; the same call completes it.
    """
    removed, others = list[str](), list[str]()
    with contextlib.suppress(ForeignLogError):
        if any(read_delta_log(store, kind).version >= 0 for kind in KINDS):  # by its name: a listing may lag
            publish_delta(store, is_erasing=True)
    for kind in KINDS:
        try:
            log = read_delta_log(store, kind)
        except ForeignLogError:
            others += sorted(store.find(delta_log_folder(kind)))
            # What is of ours goes all the same, though that log may name it.
            removed += _delete(store, _current_files(store, kind))
            continue
        removed += _delete(store, [name for name in _current_files(store, kind) if name not in log.files])
        hide_statistics(store, log)
    return removed, others


def _current_files(store: Store, kind: Kind) -> list[str]:
    return sorted(filter(is_current_file, store.find(current_folder(kind))))


def _delete(store: Store, names: list[str]) -> Iterator[str]:
    for name in names:
        store.delete(name)
        yield name
