"""One run of an output as something to compare with: its images by file name, what was asked of them, what was found.

Reads in batches, and keeps only what belongs to the images that are wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from pipelines.category_names import some_of
from pipelines.manifest import Plan
from pipelines.storage import Store
from pipelines.table import Kind, open_table
from pipelines.tabular import SourceError
from pipelines.types import TASKS, Prompt, Rle, Status, Task

_ROWS_PER_BATCH = 4096
_IMAGE_COLUMNS = ("image_id", "shard_id", "width", "height", "status", "reason", "per_prompt")
_FOUND_COLUMNS = ("image_id", "prompt_id", "category_name", "score", "segmentation")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledImage:
    """One image of a run.

    Attributes:
        image_id, shard_id: its ids.
        size_hw: (height, width) after EXIF orientation, None if it was never decoded.
        reason: why it is quarantined, None if it is not.
        rejected: ids of its prompts that could not be asked.
    """

    image_id: str
    shard_id: str
    size_hw: tuple[int, int] | None
    reason: str | None = None
    rejected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """One row of ``annotations``."""

    prompt_id: str
    category: str
    score: float
    segmentation: Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledRun:
    """A run, as far as its images are among those wanted.

    Attributes:
        store, run_id: where it is.
        images: by the file name under which each was wanted, in the order wanted.
        missing: file names of which the run holds no image.
        num_images: all images of the run that are committed.
        common: prompts asked of every image.
        own: further prompts by ``image_id``.
    """

    store: Store
    run_id: str
    images: Mapping[str, LabelledImage]
    missing: tuple[str, ...]
    num_images: int
    common: tuple[Prompt, ...]
    own: Mapping[str, tuple[Prompt, ...]]

    def tasks(self) -> list[Task]:
        """Return what was asked of these images, in the order of TASKS."""
        asked = {prompt.task for prompt in itertools.chain(self.common, *self.own.values())}
        return [task for task in TASKS if task in asked]

    def asked(self, image_id: str, task: Task) -> list[Prompt]:
        """Return the prompts of a task that an image has, those that could not be asked among them."""
        return [prompt for prompt in (*self.common, *self.own.get(image_id, ())) if prompt.task == task]

    def found(self, task: Task) -> Iterator[tuple[LabelledImage, list[Found]]]:
        """Yield every image once with all that was found for a task: first those with masks, then the others."""
        left = {image.image_id: image for image in self.images.values()}
        for image_id, rows in itertools.groupby(self._rows(task, set(left)), key=lambda row: row["image_id"]):
            yield left.pop(image_id), [_found(row) for row in rows]
        for image in left.values():
            yield image, []

    def _rows(self, task: Task, image_ids: set[str]) -> Iterator[Mapping[str, Any]]:
        """Read rows in the order of the files: all rows of an image are in one of them, one after the other."""
        wanted = pa.array(sorted(image_ids), pa.string())
        for batch in _batches(self.store, "annotations", self.run_id, _FOUND_COLUMNS, ds.field("task") == task):
            yield from batch.filter(pc.is_in(batch["image_id"], value_set=wanted)).to_pylist()


def read_run(store: Store, plan: Plan, file_names: Collection[str]) -> LabelledRun:
    """Find the images of a run that are wanted, and what was asked of them.

    An image is wanted by the file name that equals its ``image_id``; else by the one with the same base name (what
    follows the last slash), if no other image and no other file name has it.

    Args:
        store: the output.
        plan: of the run.
        file_names: with or without folders.

    Raises:
        SourceError: the run has no committed image, none is wanted, or a base name stands for several.
    """
    exact, alike, num_images, examples = _candidates(store, plan.run_id, file_names)
    if not num_images:
        raise SourceError(f"{store.uri}: run {plan.run_id} holds no labelled image yet")
    images = _match(file_names, exact, alike)
    if not images:
        raise SourceError(
            f"none of the {len(file_names):,} images of the ground truth ({some_of(file_names)}) is among the "
            f"{num_images:,} labelled images of run {plan.run_id} ({some_of(examples)}): an image_id must be the "
            "file_name, or end in the same base name"
        )
    ids = {image.image_id for image in images.values()}
    shards = plan.shards(store, {image.shard_id for image in images.values()})
    return LabelledRun(
        store=store,
        run_id=plan.run_id,
        images=images,
        missing=tuple(name for name in file_names if name not in images),
        num_images=num_images,
        common=_common_prompts(plan),
        own={ref.image_id: ref.prompts for shard in shards for ref in shard.images if ref.image_id in ids},
    )


_Candidates = tuple[dict[str, LabelledImage], dict[str, list[LabelledImage]], int, list[str]]


def _candidates(store: Store, run_id: str, file_names: Collection[str]) -> _Candidates:
    """Return images by equal name, up to two others by base name, how many the run has, and a few of their ids."""
    exact: dict[str, LabelledImage] = {}
    alike: dict[str, list[LabelledImage]] = {base_name(name): [] for name in file_names}
    names, num_images, examples = set(file_names), 0, list[str]()
    for batch in _batches(store, "images", run_id, _IMAGE_COLUMNS, None):
        ids: list[str] = batch["image_id"].to_pylist()
        num_images += len(ids)
        examples += ids[: 3 - len(examples)] if len(examples) < 3 else []
        wanted = [place for place, name in enumerate(ids) if name in names or base_name(name) in alike]
        for row in batch.take(pa.array(wanted, pa.int64())).to_pylist():
            others = alike.get(base_name(row["image_id"]), [])
            if row["image_id"] in names:
                exact[row["image_id"]] = _image(row)
            elif len(others) < 2:
                others.append(_image(row))
    return exact, alike, num_images, examples


def _match(
    file_names: Collection[str], exact: Mapping[str, LabelledImage], alike: Mapping[str, Sequence[LabelledImage]]
) -> dict[str, LabelledImage]:
    left: dict[str, list[str]] = {}
    for name in file_names:
        if name not in exact:
            left.setdefault(base_name(name), []).append(name)
    unclear = {base: names for base, names in left.items() if alike[base] and len(names) + len(alike[base]) > 2}
    if unclear:
        base, names = next(iter(unclear.items()))
        ids = [image.image_id for image in alike[base]]
        raise SourceError(
            f"{len(unclear):,} base names of the ground truth's {len(file_names):,} images are ambiguous, e.g. {base}: "
            f"{some_of(names)} in the truth, {some_of(ids)} labelled; write file_name as the image_id"
        )
    by_base = {names[0]: alike[base][0] for base, names in left.items() if alike[base]}
    both = {**exact, **by_base}
    return {name: both[name] for name in file_names if name in both}


def base_name(name: str) -> str:
    """Return what follows the last slash."""
    return name.rpartition("/")[2]


def _image(row: Mapping[str, Any]) -> LabelledImage:
    return LabelledImage(
        image_id=row["image_id"],
        shard_id=row["shard_id"],
        size_hw=None if row["width"] is None else (row["height"], row["width"]),
        reason=row["reason"] if row["status"] == Status.QUARANTINED.value else None,
        rejected=frozenset(entry["prompt_id"] for entry in row["per_prompt"] if entry["rejected"] is not None),
    )


def _found(row: Mapping[str, Any]) -> Found:
    segmentation = Rle(size_hw=tuple(row["segmentation"]["size"]), counts=row["segmentation"]["counts"])
    return Found(row["prompt_id"], row["category_name"], row["score"], segmentation)


def _common_prompts(plan: Plan) -> tuple[Prompt, ...]:
    """Return what was asked of every image, as the plan tells."""
    known: dict[str, Task] = {task: task for task in TASKS}
    return tuple(
        Prompt(
            prompt_id=prompt["prompt_id"],
            task=known[prompt["task"]],
            text=prompt["text"],
            category_id=-1,
            category_name=prompt["text"],
        )
        for prompt in plan.facts.get("prompts", ())
    )


def _batches(
    store: Store, kind: Kind, run_id: str, columns: Sequence[str], rows: ds.Expression | None
) -> Iterator[pa.RecordBatch]:
    for fragment in open_table(store, kind, run_id).get_fragments():
        yield from fragment.to_batches(columns=list(columns), filter=rows, batch_size=_ROWS_PER_BATCH)
