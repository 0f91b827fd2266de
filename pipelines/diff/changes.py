"""What has changed between the two sides in one image, mask by mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipelines.diff.sides import SideImage, SideMask
from pipelines.masks.pairing import pair
from pipelines.types import CATEGORY_TASKS

# Answers to these are found by name: another name may be given to what is in the same place. What is found for a
# sentence or a region is an answer to that prompt alone.
_OF_NAMES = (*CATEGORY_TASKS, "gcgseg")


class Difference(StrEnum):
    """What has become of a mask: a closed list, so that SQL can group by it.

    The last two are of masks about whose prompt the other side has no answer for this image, so that nothing can be
    said of them.
    """

    KEPT = "kept"
    MOVED = "moved"
    RELABELED = "relabeled"
    ADDED = "added"
    LOST = "lost"
    UNANSWERED_BEFORE = "unanswered_before"
    UNANSWERED_AFTER = "unanswered_after"


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskChange:
    """What has become of one mask.

    Attributes:
        difference: what.
        before, after: the mask on each side; None on that where it is not.
        iou: how well the two agree, in [0, 1]; None unless there are two.
    """

    difference: Difference
    before: SideMask | None = None
    after: SideMask | None = None
    iou: float | None = None

    @property
    def masks(self) -> tuple[SideMask, ...]:
        """The one or two masks, that before first."""
        return tuple(mask for mask in (self.before, self.after) if mask is not None)

    @property
    def prompt_id(self) -> str:
        """The prompt under which it is counted: that before, of a mask that was not there the one after."""
        return self.masks[0].prompt_id

    def changed_pixels(self) -> float:
        """Return how many pixels are in another mask, or in one of another name, than before."""
        areas = [mask.area for mask in self.masks]
        if self.iou is None or self.difference is Difference.RELABELED:
            return float(max(areas))
        both = self.iou * sum(areas) / (1 + self.iou)
        return sum(areas) - 2 * both


def compare(before: SideImage, after: SideImage, *, kept_iou: float) -> Iterator[MaskChange]:
    """Yield what has become of each mask of an image.

    A mask is that with its annotation_id, else that whose shape agrees best, at an IoU of pairing.MIN_IOU and more: of
    the same name first, and only of the same prompt or of another category of the same task.

    Args:
        before, after: the image on each side, of the same size.
        kept_iou: masks of one name whose IoU is at least this are kept, others have moved.

    Raises:
        ValueError: a mask is damaged, or has another size than the image.
    """
    pairs = pair(after.masks, before.masks, _distance)
    for number, mask in enumerate(after.masks):
        if number not in pairs:
            is_told = mask.prompt_id in before.answered
            yield MaskChange(difference=Difference.ADDED if is_told else Difference.UNANSWERED_BEFORE, after=mask)
            continue
        was, iou = before.masks[pairs[number].place], pairs[number].iou
        if was.category_name != mask.category_name:
            difference = Difference.RELABELED
        else:
            difference = Difference.KEPT if iou >= kept_iou else Difference.MOVED
        yield MaskChange(difference=difference, before=was, after=mask, iou=iou)
    yield from _gone(before.masks, {match.place for match in pairs.values()}, after)


def _gone(masks: Sequence[SideMask], paired: set[int], after: SideImage) -> Iterator[MaskChange]:
    for place, mask in enumerate(masks):
        if place not in paired:
            is_told = mask.prompt_id in after.answered
            yield MaskChange(difference=Difference.LOST if is_told else Difference.UNANSWERED_AFTER, before=mask)


def _distance(after: SideMask, before: SideMask) -> int | None:
    if after.prompt_id != before.prompt_id and (after.task != before.task or after.task not in _OF_NAMES):
        return None
    return int(after.category_name != before.category_name)
