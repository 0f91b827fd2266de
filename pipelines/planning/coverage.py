"""Incremental runs: find what earlier runs of an output have not asked yet, by image and prompt.

What was asked is read from the plans. They are sorted by image id, as the listing is, so all are merged as streams and
memory does not grow with the collection.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import pyarrow as pa

from pipelines.planning.draft import UNLISTED
from pipelines.planning.plan import Plan
from pipelines.planning.plan_files import PlannedImage
from pipelines.sources.image_batches import BATCH_SIZE
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

    def images(self, store: Store) -> Iterator[tuple[str, PlannedImage]]:
        """Yield what each run has planned for each image, in image_id order."""


def prompt_key(prompt: Prompt, unit: Hashable = None) -> Hashable:
    """Return what identifies a prompt when asking whether it was asked before; its place in a list does not count."""
    return prompt.prompt_id, prompt.task, prompt.text, prompt.category_name, prompt.explain, prompt.region, unit


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

    def left(self, refs: Iterable[ImageRef]) -> Iterator[ImageRef]:
        """Yield the images that still have prompts to ask, with only those prompts.

        A quarantined image counts as asked; `retry` labels those again. An image is unchanged if its version tag is
        equal, or its size where a tag is missing; if neither is known it counts as unchanged.

        Args:
            refs: the listing in the order of image ids.
        """
        # Common prompts as bits of an integer, which is cheaper than a set for each of millions of images.
        bits = {key: 1 << number for number, key in enumerate(common_keys(self.prompts).values())}
        asked = [_AskedBy(run, bits, place) for place, run in enumerate(self.runs)]
        gathered = self.gathered
        planned = [_planned(self.store, one) for one in asked if gathered is None or one.plan.run_id not in gathered]
        if gathered is not None:
            by_run = {one.plan.run_id: one for one in asked}
            planned.append((by_run[run_id], image) for run_id, image in gathered.images(self.store))
        held = _Held(heapq.merge(*planned, key=lambda pair: pair[1].image_id))
        added = 0
        for ref in refs:
            self.unlisted.add(held.skip_to(ref.image_id))
            before = held.take(ref.image_id)
            if not before:
                self.counts.new += 1
                yield ref
                continue
            left, missing = self._left_of(ref, before, all_bits=(1 << len(bits)) - 1)
            if left is not None:
                added |= missing
                yield left
        self.unlisted.add(held.skip_to(None))
        self.counts.gone = len(self.unlisted)
        self.counts.added_prompts = tuple(self._ids(added))

    def _left_of(
        self, ref: ImageRef, before: Sequence[tuple[_AskedBy, PlannedImage]], *, all_bits: int
    ) -> tuple[ImageRef | None, int]:
        """Return what is left to ask of an image planned before (None: nothing), and the common prompts left, as bits.

        The bits are 0 for a changed image, which is asked everything without any prompt being new.
        """
        version = max(planned.version for _, planned in before)
        # Answers about an earlier version of the image are history: they say nothing about what it shows now.
        current = [(asked, planned) for asked, planned in before if planned.version == version]
        if not _is_same(ref, current[-1][1]):
            self.counts.changed += 1
            return replace(ref, version=version + 1), 0
        covered, own = 0, set[Hashable]()
        for asked, planned in current:
            if asked.same_model:
                covered |= asked.bits_of(planned)
                own.update(map(prompt_key, planned.prompts))
        missing = all_bits & ~covered
        prompts = tuple(prompt for prompt in ref.prompts if prompt_key(prompt) not in own)
        if not missing and not prompts:
            self.counts.covered += 1
            return None, 0
        self.counts.extended += 1
        common = None if missing == all_bits else tuple(self._ids(missing))
        return replace(ref, version=version, prompts=prompts, common=common), missing

    def _ids(self, bits: int) -> Iterator[str]:
        return (prompt.prompt_id for number, prompt in enumerate(self.prompts) if bits >> number & 1)


class _AskedBy:
    """An earlier run's common prompts, as a bit mask over the new run's."""

    def __init__(self, run: CoveringRun, bits: dict[Hashable, int], place: int) -> None:
        self.plan, self.same_model, self.place = run.plan, run.same_model, place
        self._bits = {prompt_id: bits.get(key, 0) for prompt_id, key in common_keys(run.prompts).items()}
        self._all = sum(self._bits.values())

    def bits_of(self, planned: PlannedImage) -> int:
        """Return the common prompts that an image was asked."""
        if planned.common is None:
            return self._all
        return sum(self._bits.get(prompt_id, 0) for prompt_id in planned.common)


class _Held:
    """A cursor over the images planned by all runs, merged by image id."""

    def __init__(self, planned: Iterable[tuple[_AskedBy, PlannedImage]]) -> None:
        groups = itertools.groupby(planned, key=lambda pair: pair[1].image_id)
        self._groups = ((image_id, sorted(group, key=lambda pair: pair[0].place)) for image_id, group in groups)
        self._next = next(self._groups, None)

    def skip_to(self, image_id: str | None) -> Iterator[str]:
        """Skip the ids before this one (all of them for None), and yield them."""
        while self._next is not None and (image_id is None or self._next[0] < image_id):
            yield self._next[0]
            self._next = next(self._groups, None)

    def take(self, image_id: str) -> list[tuple[_AskedBy, PlannedImage]]:
        """Return what earlier runs planned for this id, in the order of the runs."""
        if self._next is None or self._next[0] != image_id:
            return []
        found = self._next[1]
        self._next = next(self._groups, None)
        return found


def _planned(store: Store, asked: _AskedBy) -> Iterator[tuple[_AskedBy, PlannedImage]]:
    return ((asked, planned) for planned in asked.plan.planned_images(store))


def _is_same(ref: ImageRef, planned: PlannedImage) -> bool:
    if ref.etag is not None and planned.etag is not None:
        return ref.etag == planned.etag
    return ref.num_bytes is None or planned.num_bytes is None or ref.num_bytes == planned.num_bytes
