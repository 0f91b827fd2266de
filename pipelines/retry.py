"""Which images of a run are quarantined, whatever tried them since: what a retry labels again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from pipelines.manifest import read_plan, retries_by_run
from pipelines.storage import Store
from pipelines.table import open_table
from pipelines.types import ImageRef, Reason, Status


def quarantined_images(store: Store, run_id: str, reasons: Collection[str] = ()) -> list[ImageRef]:
    """Return the images of a run that are quarantined now, with the prompts that they were planned with.

    Size and etag are left out: the file may have been mended since.

    Args:
        store: the output.
        run_id: a run that is no retry itself; what its retries made of an image counts.
        reasons: only images with one of these reasons; any by default.
    """
    plan = read_plan(store, run_id)
    if plan is None:
        return []
    found: dict[str, Reason] = {}
    for one in (run_id, *retries_by_run(store).get(run_id, ())):
        rows = open_table(store, "images", one).to_table(columns=["image_id", "status", "reason"])
        for image_id, status, reason in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            if status == Status.QUARANTINED:
                found[image_id] = reason
            else:
                found.pop(image_id, None)
    wanted = {image_id for image_id, reason in found.items() if not reasons or reason in reasons}
    if not wanted:
        return []
    refs = (ref for shard in plan.shards(store) for ref in shard.images)
    return [replace(ref, num_bytes=None, etag=None) for ref in refs if ref.image_id in wanted]
