"""Where objects lie: filesystems, their clients' errors, and a store that puts an object once."""

from pipelines.storage.store import Store, open_store

__all__ = ["Store", "open_store"]
