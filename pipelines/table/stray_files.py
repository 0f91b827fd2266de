"""Files of others in an output's folders (.DS_Store, _SUCCESS): every command leaves them alone, verify lists them."""

from __future__ import annotations

from pipelines.layout import COMPACTED, KINDS, is_ours
from pipelines.storage.store import Store


def stray_files(store: Store) -> list[str]:
    """List the files in an output's folders whose names are not ours, sorted."""
    names = [name for folder in (*KINDS, COMPACTED, "_runs") for name in store.find(folder)]
    return sorted(name for name in names if not is_ours(name))
