"""Read a run, or the current rows of all runs, for comparison with ground truth.

Images are found by file name, with what was asked of them and what was found. Rows are read in batches, and only those
of the wanted images are kept.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipelines.errors import SourceError, some_of
from pipelines.planning.plan import Plan
from pipelines.query.database import count_forgotten, open_database, rows_of
from pipelines.query.row_agreement import check_agreement
from pipelines.query.select_text import read_condition
from pipelines.query.user_select import condition_errors, masks_that_fit
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.types import TASKS, Prompt, Rle, Status, Task

_ROWS_PER_BATCH = 4096
_IMAGE_COLUMNS = "image_id, width, height, status, reason, per_prompt"
_FOUND_COLUMNS = "image_id, prompt_id, category_name, score, segmentation"


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledImage:
    """One labeled image.

    Attributes:
        image_id: its id.
        size_hw: (height, width) after EXIF orientation; None if it was never decoded.
        reason: why it is quarantined; None if it is not.
        rejected: ids of its prompts that could not be asked.
        asked: ids of the prompts that were to be asked of it; None where its rows do not say (quarantined by a version
            before schema 3).
    """

    image_id: str
    size_hw: tuple[int, int] | None
    reason: str | None = None
    rejected: frozenset[str] = frozenset()
    asked: frozenset[str] | None = None

    def was_asked(self, prompt_id: str) -> bool:
        """Return whether a prompt was to be asked of this image: a run of one prompt may have been of other images."""
        return self.asked is None or prompt_id in self.asked


@dataclass(frozen=True, slots=True)
class Found:
    """A predicted mask: one row of ``annotations``."""

    prompt_id: str
    category: str
    score: float
    segmentation: Rle


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledRun:
    """A run, or all runs of an output together, restricted to the wanted images.

    Attributes:
        rows: reads the rows.
        images: the images by the file name under which they were wanted, in that order.
        missing: file names for which the run has no image.
        num_images: number of all committed images.
        num_forgotten: number of those that were forgotten; not among num_images.
        common: prompts asked of every image.
        own: prompts of single images, by ``image_id``.
        runs: those of the runs that have rows of any of the images, in order.
    """

    rows: Rows
    images: Mapping[str, LabeledImage]
    missing: tuple[str, ...]
    num_images: int
    num_forgotten: int
    common: tuple[Prompt, ...]
    own: Mapping[str, tuple[Prompt, ...]]
    runs: tuple[str, ...]

    def tasks(self) -> list[Task]:
        """Return the tasks that were asked of these images, in the order of TASKS."""
        asked = {prompt.task for prompt in itertools.chain(self.common, *self.own.values())}
        return [task for task in TASKS if task in asked]

    def asked(self, image: LabeledImage, task: Task) -> list[Prompt]:
        """Return an image's prompts of a task, including those that could not be asked."""
        return [
            prompt
            for prompt in (*self.common, *self.own.get(image.image_id, ()))
            if prompt.task == task and image.was_asked(prompt.prompt_id)
        ]

    def images_asked(self, task: Task) -> dict[str, LabeledImage]:
        """Return the images, by file name, that were asked something of a task: of the others nothing is known."""
        common = self.texts(task)
        return {
            name: image
            for name, image in self.images.items()
            if (common and (image.asked is None or not image.asked.isdisjoint(common))) or self.asked(image, task)
        }

    def texts(self, task: Task) -> dict[str, str]:
        """Return the text of each of a task's prompts that runs asked of every image, by id."""
        return {prompt.prompt_id: prompt.text for prompt in self.common if prompt.task == task}

    def found(self, task: Task) -> Iterator[tuple[LabeledImage, list[Found]]]:
        """Yield every image that was asked, once, with what was found: first images with masks, then the others."""
        left = {image.image_id: image for image in self.images_asked(task).values()}
        for image_id, rows in itertools.groupby(self._rows(task, set(left)), key=lambda row: row["image_id"]):
            yield left.pop(image_id), [_found(row) for row in rows]
        for image in left.values():
            yield image, []

    def _rows(self, task: Task, image_ids: set[str]) -> Iterator[Mapping[str, Any]]:
        """Read the rows of some images, grouped by image."""
        wanted = pa.table({"image_id": pa.array(sorted(image_ids), pa.string())})
        for batch in self.rows.masks_of(wanted, task=task):
            yield from batch.to_pylist()


class Rows:
    """Reads the rows of one run, or the current rows of all runs, by SQL; only one reader may be active at a time."""

    def __init__(self, store: Store, run_id: str | None, where: str = "") -> None:
        """Open the output.

        Args:
            store: the output.
            run_id: the run; None for the current rows of all.
            where: SQL condition on masks, over the columns of ``annotations`` and those that MASK_COLUMNS adds.

        Raises:
            StorageError: it cannot be read, or its masks and images do not belong together.
            SourceError: the condition is none.
        """
        own_files = read_condition("--where", where) if where else ()
        self._database, self._run_id = open_database(store, own_files=own_files), run_id
        check_agreement(self._database, store, run_id)
        self._masks = masks_that_fit(run_id, where)
        with condition_errors("--where"):
            self._database.sql(f"SELECT {_FOUND_COLUMNS} FROM {self._masks}")

    def all_images(self) -> Iterator[pa.RecordBatch]:
        """Read the row of every image."""
        return self._read(f"SELECT {_IMAGE_COLUMNS} FROM {rows_of('images', self._run_id)}", [])

    def masks_of(self, wanted: pa.Table, *, task: Task) -> Iterator[pa.RecordBatch]:
        """Read a task's masks of the images of the table ``wanted``, in the order of image ids."""
        self._database.register("wanted", wanted)
        query = (
            f"SELECT {_FOUND_COLUMNS} FROM {self._masks} SEMI JOIN wanted USING (image_id) WHERE task = ? "
            "ORDER BY image_id, score DESC"
        )
        with condition_errors("--where"):
            yield from self._read(query, [task])

    def shards_of(self, image_ids: Collection[str]) -> dict[str, set[str]]:
        """Return, for each run, the shards that contain any of the given images."""
        self._database.register("wanted", pa.table({"image_id": pa.array(sorted(image_ids), pa.string())}))
        found: dict[str, set[str]] = {}
        query = "SELECT DISTINCT run_id, shard_id FROM all_images SEMI JOIN wanted USING (image_id)"
        for run_id, shard_id in self._database.execute(query).fetchall():
            found.setdefault(run_id, set()).add(shard_id)
        return found

    def num_forgotten(self) -> int:
        """Return how many images were forgotten."""
        return count_forgotten(self._database, self._run_id)

    def _read(self, query: str, values: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._database.sql(query, params=values).to_arrow_reader(_ROWS_PER_BATCH)


def read_run(store: Store, plans: Sequence[Plan], file_names: Collection[str], *, where: str = "") -> LabeledRun:
    """Find the wanted images in a run, with the prompts asked of them.

    A file name matches the image whose ``image_id`` equals it, or else the image with the same ``base_name``, if no
    other image and no other file name has that base name.

    Args:
        store: the output.
        plans: the plan of one run, or those of all runs in order, to use the current rows.
        file_names: names of the wanted images, with or without folders.
        where: SQL condition on masks; those that do not fit count as not found.

    Raises:
        SourceError: no image is committed, none of the wanted images is found, or a base name is ambiguous.
    """
    rows = Rows(store, plans[0].run_id if len(plans) == 1 else None, where)
    exact, alike, num_images, examples = _candidates(rows, file_names)
    runs = runs_named(plans)
    if not num_images:
        raise SourceError(f"{store.uri}: {runs} holds no labeled image yet")
    images = _match(file_names, exact, alike)
    if not images:
        raise SourceError(
            f"none of the {counted(len(file_names), 'image')} of the ground truth "
            f"({some_of(file_names)}) is among the "
            f"{counted(num_images, 'labeled image')} of {runs} ({some_of(examples)}): an "
            "image_id must be the "
            "file_name, or end in the same base name"
        )
    ids = {image.image_id for image in images.values()}
    shards = rows.shards_of(ids)
    return LabeledRun(
        rows=rows,
        images=images,
        missing=tuple(name for name in file_names if name not in images),
        num_images=num_images,
        num_forgotten=rows.num_forgotten(),
        common=tuple({p.prompt_id: p for plan in plans for p in _common_prompts(plan)}.values()),
        own=_own_prompts(store, plans, shards, ids),
        runs=tuple(plan.run_id for plan in plans if plan.run_id in shards),
    )


def runs_named(plans: Sequence[Plan]) -> str:
    """Return a phrase that names the runs, for messages."""
    return f"run {plans[0].run_id}" if len(plans) == 1 else f"runs {', '.join(plan.run_id for plan in plans)}"


def _own_prompts(
    store: Store, plans: Sequence[Plan], shards: Mapping[str, Collection[str]], image_ids: set[str]
) -> dict[str, tuple[Prompt, ...]]:
    """Return the prompts of single images that all runs together asked of each image's newest version."""
    versions: dict[str, int] = {}
    own: dict[str, dict[str, Prompt]] = {}
    for plan in plans:
        for ref in (ref for shard in plan.shards(store, shards.get(plan.run_id, ())) for ref in shard.images):
            if ref.image_id not in image_ids:
                continue
            # Plans come in order, so another version is a newer one: what was asked of earlier ones is history.
            if versions.get(ref.image_id) != ref.version:
                versions[ref.image_id], own[ref.image_id] = ref.version, {}
            own[ref.image_id].update((prompt.prompt_id, prompt) for prompt in ref.prompts)
    return {image_id: tuple(prompts.values()) for image_id, prompts in own.items()}


_Candidates = tuple[dict[str, LabeledImage], dict[str, list[LabeledImage]], int, list[str]]


def _candidates(rows: Rows, file_names: Collection[str]) -> _Candidates:
    """Return images by exact name, others by base name (two at most), the number of all images, and a few example ids.

    Two are enough to see that a base name is ambiguous.
    """
    exact: dict[str, LabeledImage] = {}
    alike: dict[str, list[LabeledImage]] = {base_name(name): [] for name in file_names}
    names, num_images, examples = set(file_names), 0, list[str]()
    for batch in rows.all_images():
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
    file_names: Collection[str], exact: Mapping[str, LabeledImage], alike: Mapping[str, Sequence[LabeledImage]]
) -> dict[str, LabeledImage]:
    left: dict[str, list[str]] = {}
    for name in file_names:
        if name not in exact:
            left.setdefault(base_name(name), []).append(name)
    # One name and one image are a match; one more of either is ambiguous.
    unclear = {base: names for base, names in left.items() if alike[base] and len(names) + len(alike[base]) > 2}
    if unclear:
        base, names = next(iter(unclear.items()))
        ids = [image.image_id for image in alike[base]]
        raise SourceError(
            f"{counted(len(unclear), 'base name is', 'base names are')} ambiguous among the ground truth's "
            f"{counted(len(file_names), 'image')}, e.g. {base}: "
            f"{some_of(names)} in the truth, {some_of(ids)} labeled; write file_name as the image_id"
        )
    by_base = {names[0]: alike[base][0] for base, names in left.items() if alike[base]}
    both = {**exact, **by_base}
    return {name: both[name] for name in file_names if name in both}


def is_end_of_other(name: str, other: str) -> bool:
    """Return whether of two paths one is the end of the other, so that no folder speaks against one image."""
    paths = ("/" + unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./") for path in (name, other))
    short, long = sorted(paths, key=len)
    return long.endswith(short)


def base_name(name: str) -> str:
    """Return the part of a name after the last slash, or backslash as Windows writes it, accents as one character."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])


def _image(row: Mapping[str, Any]) -> LabeledImage:
    # Rows that were quarantined by a version before schema 3 do not say what was to be asked.
    is_told = bool(row["per_prompt"]) or row["status"] != Status.QUARANTINED.value
    return LabeledImage(
        image_id=row["image_id"],
        size_hw=None if row["width"] is None else (row["height"], row["width"]),
        reason=row["reason"] if row["status"] == Status.QUARANTINED.value else None,
        rejected=frozenset(entry["prompt_id"] for entry in row["per_prompt"] if entry["rejected"] is not None),
        asked=frozenset(entry["prompt_id"] for entry in row["per_prompt"]) if is_told else None,
    )


def _found(row: Mapping[str, Any]) -> Found:
    return Found(row["prompt_id"], row["category_name"], row["score"], Rle.from_coco(row["segmentation"]))


def _common_prompts(plan: Plan) -> tuple[Prompt, ...]:
    """Return the prompts asked of every image, from the plan's facts."""
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
