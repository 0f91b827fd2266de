"""Which images of a run are quarantined, whatever tried them since: what a retry labels again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.manifest import plan_documents, read_plan, retries_by_run
from pipelines.storage import StorageError, Store, explained
from pipelines.table import open_table
from pipelines.types import ImageRef, Reason, Status


def quarantined_images(store: Store, run_id: str, reasons: Collection[str] = ()) -> list[ImageRef]:
    """Return the images of a run that are quarantined now, with the prompts that they were planned with.

    Size and etag are left out: the file may have been mended since. An image that a later run has found changed is that
    run's.

    Args:
        store: the output.
        run_id: a run that is no retry itself; what its retries made of an image counts.
        reasons: only images with one of these reasons; any by default.

    Raises:
        StorageError: the output cannot be read.
    """
    plan = read_plan(store, run_id)
    if plan is None:
        return []
    found: dict[str, Reason] = {}
    for one in (run_id, *retries_by_run(store).get(run_id, ())):
        rows = _images(store, one, columns=["image_id", "status", "reason"])
        for image_id, status, reason in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            if status == Status.QUARANTINED:
                found[image_id] = reason
            else:
                found.pop(image_id, None)
    wanted = {image_id for image_id, reason in found.items() if not reasons or reason in reasons}
    if not wanted:
        return []
    newest = _newest_versions(store, wanted)
    refs = (ref for shard in plan.shards(store) for ref in shard.images)
    return [
        replace(ref, num_bytes=None, etag=None)
        for ref in refs
        if ref.image_id in wanted and ref.version >= newest.get(ref.image_id, 1)
    ]


def _images(store: Store, run_id: str, **what: Any) -> pa.Table:
    """Read rows of a run's images.

    Raises:
        StorageError: they cannot be read; what a storage client or pyarrow says is in it.
    """
    uri = f"{store.uri}/images/{run_id}"
    try:
        with explained(uri):
            return open_table(store, "images", run_id).to_table(**what)
    except pa.ArrowException as error:
        first = str(error).partition("\n")[0]
        raise StorageError(f"{uri}: its rows cannot be read ({first}); verify names what is damaged") from error


def _newest_versions(store: Store, image_ids: Collection[str]) -> dict[str, int]:
    """Return the newest version of each of these images that any run of the output has planned."""
    is_wanted = ds.field("image_id").isin(pa.array(sorted(image_ids), pa.string()))
    newest: dict[str, int] = {}
    for run_id in plan_documents(store):
        rows = _images(store, run_id, columns=["image_id", "image_version"], filter=is_wanted)
        for image_id, version in zip(rows["image_id"].to_pylist(), rows["image_version"].to_pylist(), strict=True):
            newest[image_id] = max(newest.get(image_id, 1), version or 1)
    return newest
