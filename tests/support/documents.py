"""Plans, commits and summaries that a test changes, as a writer that means it would have written them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store


def change_document(store: Store, name: str, change: Mapping[str, Any] | Callable[[dict[str, Any]], object]) -> None:
    """Change what a JSON object of an output says: lay values over it, or do something to it; its checksum fits."""
    document = store.read_json(name)
    if isinstance(change, Mapping):
        document |= change
    else:
        change(document)
    store.write(name, document_bytes(document))


def document_bytes(document: dict[str, Any]) -> bytes:
    """Return a document as it is kept, with a checksum if it has a place for one."""
    sealed = [part for part in (document, document.get("predictor", {})) if BLANK.keys() <= part.keys()]
    for part in sealed:
        # The two belong together, in their order.
        for name in BLANK:
            del part[name]
        part.update(BLANK)
    return seal(document) if sealed else json.dumps(document).encode()
