"""Erase forgotten images from a run's plan: a new version without them, beside which the earlier ones mean nothing."""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Collection, Iterable, Mapping
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.layout import plan_name, run_folder
from pipelines.planning.draft import UNLISTED
from pipelines.planning.erasures import Forgotten, salted, tombstone
from pipelines.planning.exemplars.images import exemplar_file, exemplar_images
from pipelines.planning.plan import DRIVER_ID, Plan, require_plan
from pipelines.planning.plan_files import rewritten
from pipelines.planning.plan_versions import (
    is_superseded,
    names_in,
    newest_document,
    part_names,
    supersede,
    versions,
)
from pipelines.sources.image_batches import IS_FORGOTTEN
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store
from pipelines.table.commits import write_missing


def forget_in_plan(store: Store, run_id: str, shard_ids: Collection[str], forgotten: Forgotten) -> bool:
    """Make a version of a plan that does not name forgotten images, and mark the versions before it as superseded.

    Args:
        store: the output.
        run_id: the run.
        shard_ids: its shards that hold such images.
        forgotten: the images.

    Returns:
        Whether a version was made; otherwise the one that holds names none of them.

    Raises:
        DamagedError: a file of the plan is missing or damaged.
    """
    # A version that was made by a driver that then died is taken as it is.
    is_changed = _supersede(store, run_id)
    while (version := _changed(store, require_plan(store, run_id), shard_ids, forgotten)) is not None:
        document, files = version
        number = sum(1 for _ in versions(store, run_id))
        if store.create(plan_name(run_id, number), seal(document)):
            # Another driver that ends its erasure may have taken them for abandoned.
            write_missing(store, files)
        else:  # another version was first
            for name in files:
                store.delete(name)
        _supersede(store, run_id)
        is_changed = True
    return is_changed


def superseded_files(store: Store, run_id: str) -> list[str]:
    """Return the plan files in a run's folder that the version which holds does not name, relative to the output."""
    plan = require_plan(store, run_id)
    held = {f"{run_folder(run_id)}/{part.name}" for part in plan.files}
    prefix = f"{run_folder(run_id)}/plan-"
    listed = {name for name in store.find(run_folder(run_id)) if name.startswith(prefix) and name.endswith(".parquet")}
    return sorted((listed | part_names(store, run_id)) - held)


def _supersede(store: Store, run_id: str) -> bool:
    """Mark all versions but the last whose files are there as superseded; return whether any was not."""
    held = list(versions(store, run_id))
    if len(held) == 1:
        return False
    is_whole = [all(store.size(f"{run_folder(run_id)}/{name}") for name in names_in(one)) for _, one in held]
    last = max((number for number, whole in enumerate(is_whole) if whole), default=0)
    left = [(name, document) for name, document in held[:last] if not is_superseded(document)]
    for name, document in left:
        supersede(store, name, document)
    return bool(left)


def _changed(
    store: Store, plan: Plan, shard_ids: Collection[str], forgotten: Forgotten
) -> tuple[dict[str, Any], dict[str, bytes]] | None:
    """Write a plan's files without forgotten images; return the document that names them, and the files by name.

    Returns None if nothing changes.
    """
    (_, document), unique = newest_document(store, plan.run_id), f"{DRIVER_ID}-{secrets.token_hex(4)}"
    parts, checks = list(document["parts"]), dict(document.get("part_checks", {}))
    num_bytes, files, is_changed = 0, dict[str, bytes](), False

    def write(name: str, data: bytes) -> dict[str, Any]:
        files[f"{run_folder(plan.run_id)}/{name}"] = data
        store.write(f"{run_folder(plan.run_id)}/{name}", data)
        return {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    for number, (part, held) in enumerate(plan.shards_by_part()):
        if set(held).isdisjoint(shard_ids):
            continue
        erased = _Erased(forgotten)
        with plan.open_part(store, part) as held_data:
            data = rewritten(held_data, erased)
        if not erased.images:
            continue
        name = f"plan-{unique}-{number:05d}.parquet"
        checks[name] = write(name, data)
        checks.pop(part.name, None)
        parts[number] = {"name": name, "num_shards": part.num_shards}
        num_bytes += erased.num_bytes
        is_changed = True
    unlisted = plan.unlisted_ids(store) if plan.unlisted else UNLISTED.empty_table()
    left = [image_id for image_id in unlisted["image_id"].to_pylist() if image_id not in forgotten]
    if len(left) < unlisted.num_rows:
        name, is_changed = f"plan-{unique}-unlisted.parquet", True
        document["unlisted"] = {"name": name, **write(name, _parquet(left))} if left else None
    facts, kept = _facts(document["facts"], forgotten), _kept_exemplars(document["facts"], forgotten)
    if plan.exemplars is not None and kept is not None:
        images = {name: image for name, image in exemplar_images(store, plan).items() if name in kept}
        name, is_changed = f"plan-{unique}-exemplars.parquet", True
        document["exemplars"] = {"name": name, **write(name, exemplar_file(images))} if images else None
    if not is_changed and facts == document["facts"]:
        return None
    changed = {
        **document,
        "parts": parts,
        "part_checks": checks,
        "num_bytes": max(0, document["num_bytes"] - num_bytes),
        "images_sha256": None,  # of images that are not all there any more
        "facts": facts,
        # Unique to its writer, as create needs.
        "driver_id": unique,
        **BLANK,
    }
    return changed, files


def _facts(facts: Mapping[str, Any], forgotten: Forgotten) -> dict[str, Any]:
    """Return a plan's facts without what tells of forgotten images: rejected prompts, labels of theirs, exemplars."""
    changed = dict(facts)
    if "rejected_prompts" in facts:
        rows = facts["rejected_prompts"]
        changed["rejected_prompts"] = [row for row in rows if not forgotten.names(str(row["image"]))]
    if "category_ids" in facts:
        numbers = facts["category_ids"].items()
        changed["category_ids"] = {name: number for name, number in numbers if not forgotten.is_label(name)}
    if "exemplars" in (config := facts.get("config", {})):
        frozen = config["exemplars_frozen"]
        gone = {one["image"] for one in frozen if _is_of(one, forgotten)}
        # What others show stays as it was asked: of a forgotten one only that there was one, and where in its image.
        blank = {
            name: {"image": tombstone(salted(forgotten.salt, name)), "uri": "", "sha256": "", "segmentation": None}
            for name in gone
        }
        changed["config"] = {
            **config,
            "exemplars": [_blanked(one, blank) for one in config["exemplars"]],
            "exemplars_frozen": [_blanked(one, blank) for one in frozen],
        }
    return changed


def _is_of(exemplar: Mapping[str, Any], forgotten: Forgotten) -> bool:
    return bool(exemplar["uri"]) and (forgotten.names(exemplar["image"]) or forgotten.names(exemplar["uri"]))


def _blanked(exemplar: Mapping[str, Any], blank: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return an exemplar as a plan has it, without what tells of its image if that is one of those to blank."""
    told = {name: value for name, value in blank.get(exemplar["image"], {}).items() if name in exemplar}
    if told and exemplar["segmentation"] is not None:
        # The outline of what it showed, too: a point stands for it.
        told |= {"kind": "point", "coordinates": [0.0, 0.0]}
    return {**exemplar, **told}


def _kept_exemplars(facts: Mapping[str, Any], forgotten: Forgotten) -> set[str] | None:
    """Return the SHA-256 of the images of exemplars that are not forgotten; None if none is."""
    frozen = facts.get("config", {}).get("exemplars_frozen", ())
    gone = {one["sha256"] for one in frozen if _is_of(one, forgotten)}
    return {one["sha256"] for one in frozen} - gone if gone else None


def _parquet(image_ids: Iterable[str]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"image_id": pa.array(image_ids, pa.string())}, schema=UNLISTED), buffer, compression="zstd"
    )
    return buffer.getvalue()


class _Erased:
    """Erases forgotten images from the shards of a plan.

    Attributes:
        images: how many were erased.
        num_bytes: their sizes together, as far as they are known.
    """

    def __init__(self, forgotten: Forgotten) -> None:
        self._forgotten = forgotten
        self.images = self.num_bytes = 0

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Return a shard whose forgotten images are rows that say so, at its end: their place would tell of a name."""
        if IS_FORGOTTEN.name not in shard.schema.names:
            shard = shard.append_column(IS_FORGOTTEN, pa.nulls(shard.num_rows, pa.bool_()))
        is_gone = [image_id in self._forgotten for image_id in shard["image_id"].to_pylist()]
        was_gone = shard["is_forgotten"].to_pylist()
        left = shard.filter(pa.array([not (now or before) for now, before in zip(is_gone, was_gone, strict=True)]))
        before = shard.filter(pa.array([bool(one) for one in was_gone])).to_pylist()
        rows = [*before, *map(self._row, shard.filter(pa.array(is_gone)).to_pylist())]
        rows.sort(key=itemgetter("image_id"))
        return pa.concat_tables([left, pa.Table.from_pylist(rows, schema=shard.schema)])

    def _row(self, image: dict[str, Any]) -> dict[str, Any]:
        self.images += 1
        self.num_bytes += image["num_bytes"] or 0
        return {
            "shard_id": image["shard_id"],
            "image_id": tombstone(salted(self._forgotten.salt, image["image_id"])),
            "uri": "",
            "version": image.get("version"),
            IS_FORGOTTEN.name: True,
        }
