"""What lies in an output's folders and is none of its own: left alone by every command, and told of by verify."""

from __future__ import annotations

from pipelines.layout import KINDS, is_ours
from pipelines.storage.store import Store


def foreign_names(store: Store) -> list[str]:
    """List the files of an output's folders that have no name of ours (.DS_Store, _SUCCESS, part-0.parquet), sorted."""
    names = [name for folder in (*KINDS, "_runs") for name in store.find(folder)]
    return sorted(name for name in names if not is_ours(name))
