"""Read and write a run's summary.json. Nothing depends on it: if it is missing or damaged, the next run rewrites it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import DamagedError
from pipelines.layout import summary_name
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store

_KINDS: Mapping[str, type] = {
    "ledger": dict,
    "reason_counts": dict,
    "num_annotations": int,
    "shards": int,
    "committed": int,
    "problems": list,
    "facts": dict,
}


def summary_bytes(values: Mapping[str, Any]) -> bytes:
    """Serialize a summary, with its checksum."""
    return seal({**values, **BLANK})


def read_summary(store: Store, run_id: str) -> dict[str, Any] | None:
    """Read a run's summary, written by this or an earlier version; None if there is none.

    Raises:
        DamagedError: the object is not a valid summary.
        StorageError: it cannot be read.
    """
    try:
        document = store.read_json(summary_name(run_id))
    except FileNotFoundError:
        return None
    # type() is, not isinstance: true and false are ints, and no counts.
    if not isinstance(document, dict) or any(type(document.get(name)) is not kind for name, kind in _KINDS.items()):
        raise DamagedError(f"{store.uri}/{summary_name(run_id)}: no summary of a run")
    if any(type(number) is not int for number in document["ledger"].values()):
        raise DamagedError(f"{store.uri}/{summary_name(run_id)}: its ledger does not hold counts")
    return {name: value for name, value in document.items() if name not in BLANK}


def readable_summary(store: Store, run_id: str) -> dict[str, Any]:
    """Return a run's summary; an empty dict if there is none yet, or a damaged one."""
    try:
        return read_summary(store, run_id) or {}
    except DamagedError:
        return {}
