"""Compare two sides image by image, as two sorted streams: memory does not grow with the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.diff.change_table import ChangeTable
from pipelines.diff.changes import Difference, MaskChange, compare
from pipelines.diff.largest import LargeChange, Largest
from pipelines.diff.sides import Chosen, Side, SideImage
from pipelines.diff.tally import ImageTally, PromptTally, Tally
from pipelines.errors import DamagedError, SourceError, some_of
from pipelines.redaction import counted

KEPT_IOU = 0.9
"""Masks of one name that agree at least so well count as kept, unless told otherwise."""
_FIGURES = {
    "only_before": ("is", "are", "on the before side only"),
    "only_after": ("is", "are", "on the after side only"),
    "quarantined_before": ("is", "are", "quarantined on the before side only"),
    "quarantined_after": ("is", "are", "quarantined on the after side only"),
    "quarantined_both": ("is", "are", "quarantined on both sides"),
    "resized": ("has", "have", "another size on the two sides, and their masks cannot be compared"),
    "other_bytes": ("is", "are", "another file on the two sides, of the same size, and compared all the same"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison comes to.

    Attributes:
        before, after: the two sides.
        kept_iou: least IoU of masks that count as kept.
        where: the condition on masks.
        images: figures of images.
        prompts: figures of masks by prompt.
        total: figures of all masks.
        largest: the largest changes of each kind.
        notes: what is to be known beside the figures.
        num_rows: rows of the table of changes.
    """

    before: Chosen
    after: Chosen
    kept_iou: float
    where: str
    images: ImageTally
    prompts: dict[str, PromptTally]
    total: PromptTally
    largest: dict[Difference, tuple[LargeChange, ...]]
    notes: tuple[str, ...]
    num_rows: int

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain JSON values."""
        return {
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "kept_iou": self.kept_iou,
            "where": self.where,
            "images": self.images.to_dict(),
            "total": self.total.to_dict(),
            "prompts": {name: tally.to_dict() for name, tally in self.prompts.items()},
            "notes": list(self.notes),
        }


def compare_sides(  # noqa: PLR0913  (each is a choice of its own)
    before: Chosen,
    after: Chosen,
    folder: Path,
    *,
    kept_iou: float = KEPT_IOU,
    where: str = "",
    table: Path | None = None,
    with_kept: bool = False,
    num_largest: int = 0,
    on_image: Callable[[int], None] = lambda _count: None,
) -> Comparison:
    """Compare two sides.

    Args:
        before, after: what is compared.
        folder: existing folder for data that does not fit into memory.
        kept_iou: masks of one name whose IoU is at least this are kept, others have moved.
        where: SQL condition on masks; those that do not fit are on neither side.
        table: new file for the table of changes; None for none.
        with_kept: whether it has rows for kept masks, too.
        num_largest: how many of the largest changes of each kind are returned.
        on_image: called with the number of images looked at so far.

    Raises:
        SourceError: the condition is none, or the two have no image in common.
        StorageError: an output cannot be read, or is damaged.
    """
    with ExitStack() as stack:
        first = stack.enter_context(Side(before, folder / "before", where))
        second = stack.enter_context(Side(after, folder / "after", where))
        totals = [side.num_images() for side in (first, second)]
        ids = None if totals[0] <= totals[1] else second.few_ids()
        first.restrict(ids)
        second.restrict(first.few_ids() if ids is None else None)
        tally = Tally(first.prompts() | second.prompts())
        largest, num_common = Largest(num_largest), 0
        rows = None if table is None else stack.enter_context(ChangeTable(table))
        for one, other in _in_both(first.images(), second.images()):
            num_common += 1
            changes = _compared(one, other, tally, kept_iou, after)
            largest.add(other, changes)
            for change in changes if rows is not None else ():
                if rows is not None and (with_kept or change.difference is not Difference.KEPT):
                    rows.add(other, change)
            on_image(num_common)
        tally.images.only_before, tally.images.only_after = (total - num_common for total in totals)
        if after.images_of is not None:  # others are out of question
            tally.images.only_before = 0
        if not num_common and after.images_of is None:
            raise SourceError(_nothing_in_common(first, second, totals))
        notes = [*first.notes(), *second.notes()]
        prompts = tally.prompts()
        return Comparison(
            before=before,
            after=after,
            kept_iou=kept_iou,
            where=where,
            images=tally.images,
            prompts=prompts,
            total=tally.total(),
            largest=largest.found(),
            notes=(*dict.fromkeys(notes), *_notes(tally.images, prompts)),
            num_rows=0 if rows is None else rows.num_rows,
        )


def _in_both(before: Iterator[SideImage], after: Iterator[SideImage]) -> Iterator[tuple[SideImage, SideImage]]:
    """Yield each image that both sides have, given both in the order of ids."""
    one, other = next(before, None), next(after, None)
    while one is not None and other is not None:
        if one.image_id == other.image_id:
            yield one, other
            one, other = next(before, None), next(after, None)
        # DuckDB orders texts by their bytes in UTF-8, which is the order of their characters.
        elif one.image_id < other.image_id:
            one = next(before, None)
        else:
            other = next(after, None)


def _compared(before: SideImage, after: SideImage, tally: Tally, kept_iou: float, chosen: Chosen) -> list[MaskChange]:
    """Return what has become of each mask of an image, and count it."""
    if None not in (before.size_hw, after.size_hw) and before.size_hw != after.size_hw:
        tally.images.note("resized", after.image_id)
        return []
    try:
        changes = list(compare(before, after, kept_iou=kept_iou))
    except ValueError as error:
        raise DamagedError(
            f"{chosen.store.uri}: the masks of image {after.image_id} cannot be compared ({error}); verify names what "
            "is damaged"
        ) from error
    tally.add(before, after, changes)
    return changes


def _nothing_in_common(first: Side, second: Side, totals: list[int]) -> str:
    told = [
        f"{side.chosen} has {counted(total, 'image')}" + (f" ({some_of(side.some_ids())})" if total else "")
        for side, total in zip((first, second), totals, strict=True)
    ]
    return f"no image is on both sides, so there is nothing to compare: {'; '.join(told)}. Images go by image_id"


def _notes(images: ImageTally, prompts: dict[str, PromptTally]) -> Iterator[str]:
    for name, (one, several, what) in _FIGURES.items():
        if count := getattr(images, name):
            told = counted(count, f"image {one}", f"images {several}")
            ids = f": {some_of(images.examples[name])}" if images.examples.get(name) else ""
            yield f"{told} {what}{ids}"
    for side, other, name in (("before", "after", "images_before"), ("after", "before", "images_after")):
        alone = [prompt for prompt, tally in prompts.items() if getattr(tally, name) and not tally.images]
        if alone:
            told = counted(len(alone), "prompt was", "prompts were")
            yield (
                f"{told} answered on the {side} side only; what was found for {'it' if len(alone) == 1 else 'them'} "
                f"is neither added nor lost but unanswered_{other}: {some_of(alone)}"
            )
        partly = [prompt for prompt, tally in prompts.items() if getattr(tally, name) and tally.images]
        if partly:
            told = counted(len(partly), "prompt was", "prompts were")
            yield f"{told} answered on the {side} side only for some of the images: {some_of(partly)}"
