"""The figures of a comparison: of images, and of masks by prompt. What it holds does not grow with the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.diff.changes import Difference, MaskChange
from pipelines.diff.sides import SideImage
from pipelines.types import CATEGORY_TASKS

IOU_BINS = 20
"""Steps of equal width from 0 to 1 in which pairs of masks are counted."""
OF_SINGLE_IMAGES = "prompts of single images"
"""Where prompts are counted that were asked of single images, each of which may have its own."""
_MAX_KNOWN = 10_000
_FAILED = {(True, True): "quarantined_both", (True, False): "quarantined_before", (False, True): "quarantined_after"}


@dataclass(slots=True)
class PromptTally:
    """The figures of one prompt.

    Attributes:
        images: those about which both sides have an answer.
        images_before, images_after: those about which that side alone has one.
        changed_images: those with a mask that is not kept.
        masks_before, masks_after: all masks.
        counts: masks by what has become of them; of pairs each is counted once, under the prompt of the mask before.
        relabeled_here: masks of other prompts before that are of this one now.
        iou_counts: kept and moved masks by IoU, in IOU_BINS bins.
        iou_sum, score_change_sum: over the same, for the means.
    """

    images: int = 0
    images_before: int = 0
    images_after: int = 0
    changed_images: int = 0
    masks_before: int = 0
    masks_after: int = 0
    counts: Counter[Difference] = field(default_factory=Counter)
    relabeled_here: int = 0
    iou_counts: list[int] = field(default_factory=lambda: [0] * IOU_BINS)
    iou_sum: float = 0.0
    score_change_sum: float = 0.0

    @property
    def num_paired(self) -> int:
        """How many masks were found again under the same name."""
        return self.counts[Difference.KEPT] + self.counts[Difference.MOVED]

    @property
    def num_unanswered(self) -> int:
        """How many masks are of a prompt about which one side has no answer for their image."""
        return self.counts[Difference.UNANSWERED_BEFORE] + self.counts[Difference.UNANSWERED_AFTER]

    @property
    def mean_iou(self) -> float | None:
        """The mean IoU of the masks that were found again under the same name; None if there are none."""
        return self.iou_sum / self.num_paired if self.num_paired else None

    @property
    def mean_score_change(self) -> float | None:
        """By how much their scores are higher now, on the average; None if there are none."""
        return self.score_change_sum / self.num_paired if self.num_paired else None

    def add(self, change: MaskChange) -> None:
        """Count a mask whose ``prompt_id`` this is."""
        self.counts[change.difference] += 1
        if change.difference in (Difference.KEPT, Difference.MOVED) and change.before and change.after:
            iou = change.iou or 0.0
            self.iou_counts[min(int(iou * IOU_BINS), IOU_BINS - 1)] += 1
            self.iou_sum += iou
            self.score_change_sum += change.after.score - change.before.score

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "images": self.images,
            "images_before": self.images_before,
            "images_after": self.images_after,
            "changed_images": self.changed_images,
            "masks_before": self.masks_before,
            "masks_after": self.masks_after,
            **{one.value: self.counts[one] for one in Difference},
            "relabeled_here": self.relabeled_here,
            "mean_iou": self.mean_iou,
            "iou_counts": list(self.iou_counts),
            "mean_score_change": self.mean_score_change,
        }


@dataclass(slots=True)
class ImageTally:
    """The figures of images.

    Attributes:
        compared: images that both sides have answers about, of the same size.
        changed: those of them with a mask that is not kept; a mask about which one side has no answer does not count.
        other_bytes: those of them whose files differ.
        only_before, only_after: images of one side alone.
        quarantined_before, quarantined_after: images of both that have no answer on that side alone, since they could
            not be labeled.
        quarantined_both: those that have none on either.
        resized: images of both that have another size there; they are not compared.
        examples: ids of a few of them, by the name of the figure.
    """

    compared: int = 0
    changed: int = 0
    other_bytes: int = 0
    only_before: int = 0
    only_after: int = 0
    quarantined_before: int = 0
    quarantined_after: int = 0
    quarantined_both: int = 0
    resized: int = 0
    examples: dict[str, list[str]] = field(default_factory=dict)

    def note(self, name: str, image_id: str) -> None:
        """Count an image under one of the figures."""
        setattr(self, name, getattr(self, name) + 1)
        found = self.examples.setdefault(name, [])
        if len(found) < 3:
            found.append(image_id)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


class Tally:
    """Counts images and masks.

    Args:
        common: ids of the prompts that were asked of every image on either side. All others, but for categories, are
            counted together.
    """

    def __init__(self, common: Collection[str]) -> None:
        self.images = ImageTally()
        self._common = set(common)
        self._prompts: dict[str, PromptTally] = {}
        # By the prompts answered on both sides, which are alike in most images.
        self._answered: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = Counter()

    def prompts(self) -> dict[str, PromptTally]:
        """Return the figures by prompt, in the order of ids."""
        self._settle()
        order = sorted(self._prompts, key=lambda name: (name == OF_SINGLE_IMAGES, name))
        return {name: self._prompts[name] for name in order}

    def total(self) -> PromptTally:
        """Return the figures of all prompts together; its numbers of images are sums over the prompts."""
        found = PromptTally()
        for one in self.prompts().values():
            for name in ("images", "images_before", "images_after", "changed_images", "masks_before", "masks_after"):
                setattr(found, name, getattr(found, name) + getattr(one, name))
            found.counts.update(one.counts)
            found.relabeled_here += one.relabeled_here
            found.iou_counts = [a + b for a, b in zip(found.iou_counts, one.iou_counts, strict=True)]
            found.iou_sum += one.iou_sum
            found.score_change_sum += one.score_change_sum
        return found

    def add(self, before: SideImage, after: SideImage, changes: Sequence[MaskChange]) -> None:
        """Count an image of both sides, and what has become of each of its masks."""
        if failed := _FAILED.get((before.is_quarantined, after.is_quarantined)):
            self.images.note(failed, after.image_id)
        else:
            self.images.compared += 1
        self._answered[before.answered, after.answered] += 1
        if len(self._answered) > _MAX_KNOWN:
            self._settle()
        is_other = None not in (before.content_sha256, after.content_sha256)
        if is_other and before.content_sha256 != after.content_sha256:
            self.images.note("other_bytes", after.image_id)
        changed = set[str]()
        for change in changes:
            self._of(change.prompt_id).add(change)
            if change.before:
                self._of(change.before.prompt_id).masks_before += 1
            if change.after:
                self._of(change.after.prompt_id).masks_after += 1
            if change.difference is Difference.RELABELED and change.after:
                self._of(change.after.prompt_id).relabeled_here += 1
            if change.difference not in UNCHANGED:
                changed |= {self._name(mask.prompt_id) for mask in change.masks}
        for name in changed:
            self._of(name).changed_images += 1
        self.images.changed += bool(changed)

    def _settle(self) -> None:
        for (before, after), count in self._answered.items():
            first, second = set(map(self._name, before)), set(map(self._name, after))
            for name in first | second:
                tally = self._of(name)
                tally.images += count * (name in first and name in second)
                tally.images_before += count * (name not in second)
                tally.images_after += count * (name not in first)
        self._answered.clear()

    def _name(self, prompt_id: str) -> str:
        is_named = prompt_id in self._common or prompt_id.partition(":")[0] in CATEGORY_TASKS
        return prompt_id if is_named else OF_SINGLE_IMAGES

    def _of(self, prompt_id: str) -> PromptTally:
        return self._prompts.setdefault(self._name(prompt_id), PromptTally())


UNCHANGED = frozenset({Difference.KEPT, Difference.UNANSWERED_BEFORE, Difference.UNANSWERED_AFTER})
"""What has become of masks of which nothing tells that they have changed."""
