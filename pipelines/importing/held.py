"""What an output holds of some images now: their current rows, as a correction needs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.query.database import open_database
from pipelines.storage.store import Store
from pipelines.table.schema import SOURCE_HUMAN
from pipelines.types import MAP_TASKS, Change, Prompt, Rle, Status

# Of few images only the files that hold them are opened.
_FEW = 1000
_EVERY_MASK = """
SELECT a.*, coalesce(i.image_version, 1) AS version FROM all_annotations AS a
JOIN (SELECT image_id, run_id, image_version FROM all_images) AS i USING (image_id, run_id)
JOIN (SELECT run_id, place FROM runs) USING (run_id) ORDER BY place
"""
_BY_PEOPLE = """
SELECT image_id, prompt_id FROM coverage SEMI JOIN (SELECT run_id FROM runs WHERE imported IS NOT NULL) USING (run_id)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMask:
    """A current mask of an image; fields are columns of ``annotations``."""

    annotation_id: str
    prompt: Prompt
    segmentation: Rle
    score: float
    mask_score: float | None
    is_human: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldImage:
    """An image.

    Attributes:
        row: its current row in ``images``.
        masks: its current masks.
        stale: masks that are not current any more, and that no person has deleted, by id.
        deleted: ids of the masks that people have deleted.
        outdated: ids of masks of the image as it was before it changed.
        by_people: ids of the prompts whose current answer is a person's.
    """

    row: Mapping[str, Any]
    masks: tuple[HeldMask, ...]
    stale: Mapping[str, HeldMask]
    deleted: frozenset[str]
    outdated: frozenset[str]
    by_people: frozenset[str]

    @property
    def earlier(self) -> set[str]:
        """The ids of all masks that any run has found in it."""
        return {mask.annotation_id for mask in self.masks} | self.stale.keys() | self.deleted | self.outdated

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """(height, width); None if it was never decoded."""
        return None if self.row["width"] is None else (self.row["height"], self.row["width"])

    @property
    def is_usable(self) -> bool:
        """Whether it has been labeled."""
        return self.row["status"] != Status.QUARANTINED and self.row["width"] is not None


def unit_of(prompt_id: str) -> str:
    """Return what a prompt's answer is a part of: of a map all its categories, see query.current_rows."""
    task = prompt_id.partition(":")[0]
    return task if task in MAP_TASKS else prompt_id


def read_held(store: Store, image_ids: Collection[str], without_run: str) -> dict[str, HeldImage]:
    """Return those of some images that an output holds, by id; as it is without a run, which may be damaged.

    Raises:
        StorageError: the output cannot be read.
    """
    chosen = image_ids if len(image_ids) <= _FEW else None
    wanted = pa.table({"image_id": pa.array(sorted(set(image_ids)), pa.string())})
    with open_database(store, image_ids=chosen, without_run=without_run) as database:
        database.register("wanted", wanted)
        masks: dict[str, list[HeldMask]] = defaultdict(list)
        for row in _rows(database, "SELECT * FROM annotations"):
            masks[row["image_id"]].append(_mask(row))
        every: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in _rows(database, _EVERY_MASK):
            every[row["image_id"]].append(row)
        by_people: dict[str, set[str]] = defaultdict(set)
        for row in _rows(database, _BY_PEOPLE):
            by_people[row["image_id"]].add(row["prompt_id"])
        return {
            row["image_id"]: _image(row, masks[row["image_id"]], every[row["image_id"]], by_people[row["image_id"]])
            for row in _rows(database, "SELECT * FROM images")
        }


def _image(
    row: Mapping[str, Any], masks: Sequence[HeldMask], every: Sequence[Mapping[str, Any]], by_people: Collection[str]
) -> HeldImage:
    current, version = {mask.annotation_id for mask in masks}, row["image_version"] or 1
    deleted = {one["annotation_id"] for one in row["corrections"] or () if one["change"] == Change.DELETED} - current
    of_now = [one for one in every if one["version"] == version]
    # In the order of runs: of a mask that several have, the last one's row counts.
    stale = {one["annotation_id"]: _mask(one) for one in of_now if one["annotation_id"] not in current | deleted}
    return HeldImage(
        row=row,
        masks=tuple(masks),
        stale=stale,
        deleted=frozenset(deleted),
        outdated=frozenset({one["annotation_id"] for one in every} - {one["annotation_id"] for one in of_now}),
        by_people=frozenset(by_people),
    )


def some_ids(store: Store) -> list[str]:
    """Return the ids of a few images of an output."""
    with open_database(store) as database:
        return [row[0] for row in database.execute("SELECT image_id FROM images ORDER BY image_id LIMIT 3").fetchall()]


def _rows(database: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, Any]]:
    for batch in database.sql(f"FROM ({query}) SEMI JOIN wanted USING (image_id)").to_arrow_reader():
        yield from batch.to_pylist()


def _mask(row: Mapping[str, Any]) -> HeldMask:
    prompt = Prompt(
        prompt_id=row["prompt_id"],
        task=row["task"],
        text=row["prompt"],
        category_id=row["category_id"],
        category_name=row["category_name"],
        is_thing=row["is_thing"],
    )
    return HeldMask(
        annotation_id=row["annotation_id"],
        prompt=prompt,
        segmentation=Rle.from_coco(row["segmentation"]),
        score=row["score"],
        mask_score=row["mask_score"],
        is_human=row["source"] == SOURCE_HUMAN,
    )
