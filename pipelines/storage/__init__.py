"""Storage: local and remote filesystems, clear errors from their clients, and a store with create-only writes."""

from pipelines.storage.store import Store, open_store

__all__ = ["Store", "open_store"]
