"""Remove compactions that a newer one has replaced, and what compactions that never ended have left."""

from __future__ import annotations

from pipelines.compaction.compacted import (
    compacted_numbers,
    is_from_before_erasure,
    newest_compacted,
    read_compacted,
)
from pipelines.errors import DamagedError
from pipelines.layout import COMPACTED, compacted_name, split_compacted_file
from pipelines.storage.store import Store
from pipelines.table.leftovers import VACUUM_GRACE_S, Removal, old_enough


def vacuum_compacted(store: Store, *, older_than_s: float = VACUUM_GRACE_S, dry_run: bool = False) -> Removal:
    """Remove compactions that a newer one has replaced, and files that no compaction names.

    A replaced one stays until the newer one is old enough, for whoever reads its files; files of no compaction until
    they are old enough themselves, for whoever is about to name them. One that may hold rows of forgotten images goes
    at once.

    Args:
        store: the output.
        older_than_s, dry_run: as for ``table.leftovers.vacuum``.

    Raises:
        StorageError: the output cannot be read, or the store does not report when an object was written.
    """
    # Files first: a compaction that is noted between the two listings is then known to name those that were seen.
    files = {name: split for name in sorted(store.find(COMPACTED)) if (split := split_compacted_file(name))}
    newest, removal, doomed = newest_compacted(store), Removal(), list[int]()
    for number in compacted_numbers(store):
        if newest is not None and number == newest.number:
            continue
        try:
            found = read_compacted(store, number)
            is_due = is_from_before_erasure(store, found)
        except (FileNotFoundError, DamagedError):
            is_due = False
        # Age is that of the one that has replaced it; of a damaged one that nothing replaces, its own.
        witness = newest.number if newest is not None and number < newest.number else number
        old, young = old_enough(store, [compacted_name(witness)], older_than_s, dry_run=dry_run)
        if is_due or old:
            doomed.append(number)
        elif young:
            removal.kept.append(compacted_name(number))
    folders = {number: _folder(store, number) for _, number in files.values()}
    of_doomed = [name for name, (_, number) in files.items() if number in doomed]
    unnamed = [name for name, (folder, number) in files.items() if number not in doomed and folders[number] != folder]
    old, young = old_enough(store, unnamed, older_than_s, dry_run=dry_run)
    removal.kept += young
    # The note first: while it is there, so are its files.
    removal.remove(store, [*map(compacted_name, doomed), *of_doomed, *old], dry_run=dry_run)
    return removal


def _folder(store: Store, number: int) -> str:
    """Return the folder that a compaction names, by name since a listing may lag; empty if it names none."""
    try:
        return read_compacted(store, number).folder
    except (FileNotFoundError, DamagedError):
        return ""
