"""A run's summary.json as it is kept. Nothing needs it: one that is gone or damaged is written anew by the next run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import DamagedError
from pipelines.layout import summary_name
from pipelines.storage.sealed import BLANK, seal
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
    """Return a summary as it is kept."""
    return seal({**values, **BLANK})


def read_summary(store: Store, run_id: str) -> dict[str, Any] | None:
    """Read a run's summary, of whatever version; None if there is none.

    Raises:
        DamagedError: it is none.
        StorageError: it cannot be read.
    """
    try:
        document = store.read_json(summary_name(run_id))
    except FileNotFoundError:
        return None
    if not isinstance(document, dict) or any(type(document.get(name)) is not kind for name, kind in _KINDS.items()):
        raise DamagedError(f"{store.uri}/{summary_name(run_id)}: no summary of a run")
    if any(type(number) is not int for number in document["ledger"].values()):
        raise DamagedError(f"{store.uri}/{summary_name(run_id)}: its ledger does not hold counts")
    return {name: value for name, value in document.items() if name not in BLANK}


def readable_summary(store: Store, run_id: str) -> dict[str, Any]:
    """Return what a run's summary holds; nothing if it has none yet, or one that is damaged."""
    try:
        return read_summary(store, run_id) or {}
    except DamagedError:
        return {}
