"""Incremental runs: find what earlier runs of an output have not asked yet, by image and prompt.

What was asked is read from the plans. They are sorted by image id, as the listing is, so all are merged as streams and
memory does not grow with the collection.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.planning.draft import UNLISTED
from pipelines.planning.earlier.planned_groups import PlannedGroups, group_rows, has_own_prompts, runs_of
from pipelines.planning.earlier.side_by_side import PLACE, PLACED, between_ids, side_by_side
from pipelines.planning.plan import Plan
from pipelines.planning.plan_files import PLANNED, PlannedImage, to_planned
from pipelines.sources.image_batches import BATCH_SIZE, IMAGES, to_batches, to_refs
from pipelines.storage.store import Store
from pipelines.types import MAP_TASKS, ImageRef, Prompt, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveringRun:
    """A finished run, whose prompts need not be asked again of unchanged images.

    Attributes:
        plan: its plan.
        prompts: its common prompts, asked of every image unless the plan restricts them for that image.
        same_model: whether it used the model and settings of now, so that its answers still stand.
    """

    plan: Plan
    prompts: tuple[Prompt, ...]
    same_model: bool


@dataclass(slots=True)
class UpdateCounts:
    """What an incremental run found, counted while the listing is compared.

    Attributes:
        new: images that no run has planned.
        changed: images whose size or version tag has changed since they were planned.
        extended: unchanged images with prompts that were not asked of them before.
        covered: unchanged images with nothing left to ask.
        gone: images of earlier runs that are no longer listed; their rows stay.
        added_prompts: ids of the common prompts that unchanged images are asked in addition.
    """

    new: int = 0
    changed: int = 0
    extended: int = 0
    covered: int = 0
    gone: int = 0
    added_prompts: tuple[str, ...] = ()


class GatheredRuns(Protocol):
    """The merged plans of several runs; see `history.history.History`."""

    def __contains__(self, run_id: object) -> bool:
        """Return whether a run is among them."""

    @property
    def documents(self) -> Mapping[str, Any]:
        """Something of each run by its id; rows tell of a run by its place among them."""

    def batches(self, store: Store) -> Iterator[pa.RecordBatch]:
        """Yield what each run has planned for each image, in image_id order: rows of PLANNED and ``run``."""


def prompt_key(prompt: Prompt, unit: Hashable = None) -> Hashable:
    """Return what identifies a prompt when asking whether it was asked before; its place in a list does not count."""
    what = prompt.region, prompt.exemplars
    return prompt.prompt_id, prompt.task, prompt.text, prompt.category_name, prompt.explain, what, unit


def common_keys(prompts: Sequence[Prompt]) -> dict[str, Hashable]:
    """Return the keys of common prompts by prompt id.

    The categories of a semantic or panoptic task compete for pixels, so the whole list is part of each one's key: with
    another list it is another question.
    """
    lists: dict[Task, Hashable] = {
        task: tuple((prompt.text, prompt.is_thing) for prompt in prompts if prompt.task == task) for task in MAP_TASKS
    }
    return {prompt.prompt_id: prompt_key(prompt, lists.get(prompt.task)) for prompt in prompts}


class Ids:
    """Image ids in the order in which they are added, as Arrow strings: many of them are small."""

    def __init__(self) -> None:
        self._chunks: list[pa.Array] = []
        self._last: list[str] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(map(len, self._chunks)) + len(self._last)

    def add(self, ids: Iterable[str]) -> None:
        """Add ids."""
        for image_id in ids:
            self._last.append(image_id)
            if len(self._last) == BATCH_SIZE:
                self._chunks.append(pa.array(self._last, pa.string()))
                self._last.clear()

    def table(self) -> pa.Table:
        """Return them as a table with the schema UNLISTED."""
        chunks = [*self._chunks, pa.array(self._last, pa.string())]
        return pa.Table.from_arrays([pa.chunked_array(chunks)], schema=UNLISTED)


@dataclass(slots=True)
class Coverage:
    """Reduces a listing to what earlier runs have not asked.

    Attributes:
        store: the output.
        prompts: the common prompts of the new run.
        runs: earlier runs, in order.
        gathered: what some of these runs have planned, if that need not be read run by run.
        counts: complete once the listing has been consumed.
        unlisted: ids of the images of earlier runs that are not listed any more, in order; complete then, too.
    """

    store: Store
    prompts: tuple[Prompt, ...]
    runs: Sequence[CoveringRun]
    gathered: GatheredRuns | None = None
    counts: UpdateCounts = field(default_factory=UpdateCounts)
    unlisted: Ids = field(default_factory=Ids)

    def left(self, images: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the images that still have prompts to ask, with only those prompts.

        A quarantined image counts as asked; `retry` labels those again. An image is unchanged if its version tag is
        equal, or its size where a tag is missing; if neither is known it counts as unchanged.

        Args:
            images: the listing in the order of image ids, with columns of IMAGES; ``common`` says which of the run's
                prompts are to be asked of an image, if not all.

        Yields:
            Batches with the columns of IMAGES.
        """
        compared = _Compared(self)
        for listed, planned in side_by_side(images, list(self._planned())):
            yield from compared.left(listed, group_rows(planned, len(self.runs)))
        self.counts.gone = len(self.unlisted)
        self.counts.added_prompts = tuple(compared.added_ids())

    def _planned(self) -> Iterator[Iterator[pa.RecordBatch]]:
        """Yield the rows that each run has planned, or several together."""
        gathered = self.gathered
        for place, run in enumerate(self.runs):
            if gathered is None or run.plan.run_id not in gathered:
                yield map(partial(_placed, place), run.plan.planned_batches(self.store))
        if gathered is not None:
            by_run = {run.plan.run_id: place for place, run in enumerate(self.runs)}
            places = np.array([by_run.get(run_id, -1) for run_id in gathered.documents], np.int32)
            yield between_ids(
                _placed(places[np.asarray(batch["run"])], batch) for batch in gathered.batches(self.store)
            )


class _Compared:
    """Compares images with what was planned for them, and counts.

    What was asked of an image is told by the runs that planned it. Only images with prompts of their own, or that were
    asked only some of a run's, are looked at one by one.
    """

    def __init__(self, coverage: Coverage) -> None:
        self._prompts, self._counts, self._unlisted = coverage.prompts, coverage.counts, coverage.unlisted
        # Common prompts as bits of an integer, which is cheaper than a set for each of millions of images.
        bits = {key: 1 << number for number, key in enumerate(common_keys(self._prompts).values())}
        self._asked = [_AskedBy(run, bits) for run in coverage.runs]
        self._all_bits = (1 << len(bits)) - 1
        self._bit_of = {prompt_id: bits[key] for prompt_id, key in common_keys(self._prompts).items()}
        self._added = 0
        self._commons = dict[int, list[str]]()  # lists of prompt ids, by their bits

    def added_ids(self) -> Iterator[str]:
        """Yield the ids of the common prompts that unchanged images are asked in addition."""
        return self._ids(self._added)

    def left(self, images: pa.RecordBatch | None, groups: PlannedGroups) -> Iterator[pa.RecordBatch]:
        """Yield what is left of images, given all rows planned for ids up to the last of them."""
        number = pa.nulls(0, pa.int32()) if images is None else pc.index_in(images["image_id"], value_set=groups.ids)
        group = np.asarray(number.drop_null())
        is_gone = np.ones(len(groups.ids), np.bool_)
        is_gone[group] = False
        if is_gone.any():
            self._unlisted.add(groups.ids.filter(pa.array(is_gone)).to_pylist())
        if images is None:
            return
        is_known = np.asarray(number.is_valid(), np.bool_)
        known = np.flatnonzero(is_known)
        self._counts.new += len(is_known) - len(known)
        listed = images.take(pa.array(known)) if len(known) < len(is_known) else images
        is_same = _are_same(listed, groups.rows.select(["num_bytes", "etag"]).take(pa.array(groups.last[group])))
        self._counts.changed += int((~is_same).sum())
        is_single = is_same & (groups.is_odd[group] | has_own_prompts(listed) | _is_asked_some(listed))
        is_missing, common = self._missing(groups.asked_by[group], is_same & ~is_single)
        # Row by row of the listing; new images are asked everything.
        is_left, version, commons = ~is_known, np.ones(len(is_known), np.int32), np.full(len(is_known), -1)
        is_left[known], commons[known] = ~is_same | is_missing, common
        version[known] = groups.version[group] + ~is_same
        rows = np.flatnonzero(is_left)
        found = _with_columns(images.take(pa.array(rows)), version[rows], self._lists(commons[rows]))
        singles = self._left_singly(listed, groups, [(int(row), int(group[row])) for row in np.flatnonzero(is_single)])
        if singles:
            places = np.concatenate([rows, [known[row] for row, _ in singles]])
            others = pa.Table.from_batches(to_batches([ref for _, ref in singles]))
            found = pa.concat_tables([found, others]).take(pa.array(np.argsort(places)))
        yield from found.combine_chunks().to_batches()

    def _missing(
        self, asked_by: NDArray[np.int64], is_asked: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Count images by what is left to ask of them.

        Args:
            asked_by: for each image, see PlannedGroups.
            is_asked: the images that this is about.

        Returns:
            Whether common prompts are left, and the place of their list in ``_commons``; -1 if they are all.
        """
        is_missing, common = np.zeros(len(asked_by), np.bool_), np.full(len(asked_by), -1)
        keys, inverse, numbers = np.unique(asked_by[is_asked], return_inverse=True, return_counts=True)
        left = [self._all_bits & ~self._covered(int(key)) for key in keys]
        for bits, count in zip(left, numbers.tolist(), strict=True):
            self._counts.extended += count if bits else 0
            self._counts.covered += 0 if bits else count
            self._added |= bits
        is_missing[is_asked] = np.array([bits != 0 for bits in left], np.bool_)[inverse]
        common[is_asked] = np.array([self._place_of(bits) for bits in left], np.int64)[inverse]
        return is_missing, common

    def _covered(self, asked_by: int) -> int:
        covered = 0
        for place in runs_of(asked_by, len(self._asked)):
            covered |= self._asked[place].all_bits if self._asked[place].same_model else 0
        return covered

    def _place_of(self, bits: int) -> int:
        if bits in (0, self._all_bits):
            return -1
        return list(self._commons).index(bits) if self._commons.setdefault(bits, list(self._ids(bits))) else -1

    def _lists(self, places: NDArray[np.int64]) -> pa.Array:
        lists = pa.array(self._commons.values(), IMAGES.field("common").type)
        return lists.take(pa.array(places, mask=places < 0))

    def _left_singly(
        self, images: pa.RecordBatch, groups: PlannedGroups, chosen: Sequence[tuple[int, int]]
    ) -> list[tuple[int, ImageRef]]:
        """Look at images one by one, each given by its row and its group; return what is left of which rows."""
        found = list[tuple[int, ImageRef]]()
        refs = to_refs([images.take(pa.array([row for row, _ in chosen], pa.int64()))])
        for (row, number), ref in zip(chosen, refs, strict=True):
            rows = groups.rows.slice(groups.starts[number], groups.counts[number])
            asked = [self._asked[place] for place in rows["place"].to_pylist()]
            left = self._left_of(ref, list(zip(asked, to_planned(rows), strict=True)))
            found += [] if left is None else [(row, left)]
        return found

    def _left_of(self, ref: ImageRef, before: Sequence[tuple[_AskedBy, PlannedImage]]) -> ImageRef | None:
        """Return what is left to ask of an unchanged image that was planned before; None if nothing is."""
        version = max(planned.version for _, planned in before)
        covered, own = 0, set[Hashable]()
        for asked, planned in before:
            if asked.same_model and planned.version == version:
                covered |= asked.bits_of(planned)
                own.update(map(prompt_key, planned.prompts))
        wanted = self._all_bits if ref.common is None else sum(self._bit_of[prompt_id] for prompt_id in ref.common)
        missing = wanted & ~covered
        prompts = tuple(prompt for prompt in ref.prompts if prompt_key(prompt) not in own)
        if not missing and not prompts:
            self._counts.covered += 1
            return None
        self._counts.extended += 1
        self._added |= missing
        common = None if missing == self._all_bits else tuple(self._ids(missing))
        return replace(ref, version=version, prompts=prompts, common=common)

    def _ids(self, bits: int) -> Iterator[str]:
        return (prompt.prompt_id for number, prompt in enumerate(self._prompts) if bits >> number & 1)


class _AskedBy:
    """An earlier run's common prompts, as a bit mask over the new run's."""

    def __init__(self, run: CoveringRun, bits: dict[Hashable, int]) -> None:
        self.same_model = run.same_model
        self._bits = {prompt_id: bits.get(key, 0) for prompt_id, key in common_keys(run.prompts).items()}
        self.all_bits = sum(self._bits.values())

    def bits_of(self, planned: PlannedImage) -> int:
        """Return the common prompts that an image was asked."""
        if planned.common is None:
            return self.all_bits
        return sum(self._bits.get(prompt_id, 0) for prompt_id in planned.common)


def _placed(place: NDArray[np.int32] | int, batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return planned rows with the place of the run, or of each row's run."""
    places = pa.array(np.broadcast_to(place, batch.num_rows), PLACE.type)
    return pa.RecordBatch.from_arrays([places, *(batch[name] for name in PLANNED.names)], schema=PLACED)


def _are_same(images: pa.RecordBatch, planned: pa.Table) -> NDArray[np.bool_]:
    """Return which images are as they were planned."""
    same = [
        pc.equal(images[name], planned[name].combine_chunks())
        for name in ("etag", "num_bytes")
        if name in images.schema.names
    ]
    return np.asarray(pc.coalesce(*same, pa.scalar(True)), np.bool_) if same else np.ones(images.num_rows, np.bool_)


def _is_asked_some(images: pa.RecordBatch) -> NDArray[np.bool_]:
    """Return which listed images are to be asked only some of the run's common prompts."""
    if "common" not in images.schema.names:
        return np.zeros(images.num_rows, np.bool_)
    return np.asarray(images["common"].is_valid(), np.bool_)


def _with_columns(images: pa.RecordBatch, version: NDArray[np.int32], common: pa.Array) -> pa.Table:
    """Return images with all columns of IMAGES."""
    if "common" in images.schema.names:
        common = pc.coalesce(common, images["common"])
    held = {name: images[name] for name in images.schema.names} | {"version": pa.array(version), "common": common}
    columns = [held[field.name] if field.name in held else pa.nulls(len(version), field.type) for field in IMAGES]
    return pa.Table.from_arrays(columns, schema=IMAGES)
