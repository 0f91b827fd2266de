"""What a person's edits of one image come to: an answer to each prompt that they touch, and what was done to each mask.

An answer is whole, like that of a model: masks of the same prompt that the person was not shown are part of it as they
are. What the edits do not touch is not answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from pipelines.importing.edited import EditedImage, EditedMask
from pipelines.importing.held import HeldImage, HeldMask, unit_of
from pipelines.importing.names import Names
from pipelines.masks import rle
from pipelines.masks.pairing import MIN_IOU, pair
from pipelines.table.schema import annotation_id
from pipelines.types import (
    CATEGORY_TASKS,
    MAP_TASKS,
    Caption,
    CaptionPhrase,
    Change,
    Correction,
    ImagePrediction,
    ImageRef,
    MaskPrediction,
    PixelNote,
    Prompt,
    Rle,
    Status,
)


class UntoldError(ValueError):
    """Masks are not in the file, and it does not tell whether they were in it before.

    Attributes:
        number: how many they are.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(slots=True, kw_only=True)
class Answer:
    """The answer to an image's prompts.

    Attributes:
        image: its row and masks in the output before.
        masks: of all prompts that are answered.
        corrections: what was done to each mask, in the order of the file, deleted ones last.
        prompts: those that are answered, by id.
        is_changed: whether a person has changed anything of what was exported.
    """

    image: HeldImage
    masks: list[MaskPrediction] = field(default_factory=list)
    prompts: dict[str, Prompt] = field(default_factory=dict)
    corrections: list[Correction] = field(default_factory=list)
    is_changed: bool = False

    @property
    def is_news(self) -> bool:
        """Whether the output does not hold all of it already."""
        human = {mask.annotation_id for mask in self.image.masks if mask.is_human}
        is_known = all(one.change is Change.CONFIRMED and one.annotation_id in human for one in self.corrections)
        return not is_known or bool(self.prompts.keys() - self.image.by_people)

    def prediction(self, ref: ImageRef | None = None) -> ImagePrediction:
        """Return the answer as the table takes it; for the image as it was planned, if it was."""
        row, prompts = self.image.row, tuple(self.prompts.values())
        ref = ref or ImageRef(
            image_id=row["image_id"],
            uri=row["uri"],
            num_bytes=row["num_bytes"],
            etag=row["etag"],
            source_columns=row["source_columns"],
            prompts=prompts,
            common=(),
            version=row["image_version"] or 1,
        )
        units = set(map(unit_of, self.prompts))
        captions = [_caption(one, self.prompts) for one in row["captions"] or () if unit_of(one["prompt_id"]) in units]
        return ImagePrediction(
            ref=ref,
            status=Status.of_answer(prompts, self.masks, captions),
            masks=tuple(self.masks),
            captions=tuple(captions),
            prompts=prompts,
            size_hw=self.image.size_hw,
            exif_orientation=row["exif_orientation"],
            notes=tuple(map(PixelNote, row["pixel_notes"] or ())),
            num_bytes=row["num_bytes"],
            content_sha256=row["content_sha256"],
            corrections=tuple(self.corrections),
        )


def answer(
    image: EditedImage,
    held: HeldImage,
    names: Names,
    *,
    run_id: str,
    labels: Iterable[str] = (),
    unchanged_iou: float = 1.0,
) -> Answer:
    """Return what a person's edits of an image come to.

    Args:
        image: as it came back, without a problem.
        held: what the output holds of it, of the same size.
        names: of the output; new ones get numbers.
        run_id: of the import, of which new masks get their ids.
        labels: all that could be given in the tool: of these, "nothing there" is confirmed where nothing was added.
        unchanged_iou: masks whose shapes agree at least so well count as unchanged.

    Raises:
        UntoldError: masks are missing, and the file does not tell whether they were deleted.
    """
    edited = [replace(mask, name=names.name_of(mask.name)) for mask in image.masks]
    shown, claimed = image.shown or frozenset(), {mask.annotation_id for mask in edited}
    known = [*held.masks, *(mask for name, mask in held.stale.items() if name in shown or name in claimed)]
    pairs = pair(edited, known, partial(_distance, held))
    paired = {match.place for match in pairs.values()}
    absent = [mask for place, mask in enumerate(known) if place not in paired]
    current = {mask.annotation_id for mask in held.masks}
    if image.shown is None and (number := sum(mask.annotation_id in current for mask in absent)):
        raise UntoldError(number)
    answering = _Answering(
        found=Answer(image=held),
        names=names,
        run_id=run_id,
        unchanged_iou=unchanged_iou,
        who={"author": image.author, "edited_at": image.edited_at},
        taken=set(current),
        unseen=[mask for mask in absent if mask.annotation_id in current and mask.annotation_id not in shown],
    )
    for place, mask in enumerate(edited):
        before = known[pairs[place].place] if place in pairs else None
        answering.found.is_changed |= before is None or not answering.is_same(mask, before)
        # What was exported may have been replaced by a model since: its successor is what was corrected.
        now = before if before is None or before.annotation_id in current else answering.successor(before)
        if now is None:
            answering.add(mask)
        else:
            answering.compare(mask, now)
    for gone in (mask for mask in absent if mask.annotation_id in shown):
        last = gone if gone.annotation_id in current else answering.successor(gone)
        if last is not None:
            answering.delete(last)
    answering.complete(set(labels))
    return answering.found


def _distance(held: HeldImage, mask: EditedMask, before: HeldMask) -> int | None:
    """Return how far masks are apart by name; None for one that somebody else has deleted: it is drawn again."""
    return None if mask.annotation_id in held.deleted else int(mask.name != before.prompt.category_name)


@dataclass(slots=True, kw_only=True)
class _Answering:
    """Makes an answer of edits.

    Attributes:
        found: the answer so far.
        taken: ids that other masks have.
        unseen: current masks that were not exported, and are not in the file.
        who: who edited the image, and when.
        names, run_id, unchanged_iou: as for ``answer``.
    """

    found: Answer
    names: Names
    run_id: str
    unchanged_iou: float
    who: Mapping[str, Any]
    taken: set[str]
    unseen: list[HeldMask]

    def is_same(self, mask: EditedMask, before: HeldMask) -> bool:
        """Return whether a mask is as it was."""
        is_named = mask.name == before.prompt.category_name
        return is_named and float(rle.iou([mask.segmentation], [before.segmentation])[0, 0]) >= self.unchanged_iou

    def successor(self, before: HeldMask) -> HeldMask | None:
        """Return, and take, the mask of the same prompt that a later run has found in the place of one."""
        rivals = [mask for mask in self.unseen if mask.prompt.prompt_id == before.prompt.prompt_id]
        ious = rle.iou([mask.segmentation for mask in rivals], [before.segmentation])
        best = int(ious.argmax()) if rivals else -1
        if best < 0 or ious[best, 0] < MIN_IOU:
            return None
        self.unseen.remove(rivals[best])
        return rivals[best]

    def add(self, mask: EditedMask) -> None:
        """Add a mask that the output does not have now. If a run had found it, it gets its id again."""
        image, prompt, name = self.found.image, self.names.prompt_of(mask.name, mask.task), mask.annotation_id
        if name is None or name in self.taken or name not in image.earlier:
            place = len(self.found.masks)
            name = annotation_id(self.run_id, image.row["image_id"], mask.segmentation.counts, place)
        self.taken.add(name)
        self._take(prompt, mask.segmentation, name, Change.ADDED)

    def compare(self, mask: EditedMask, before: HeldMask) -> None:
        """Add a mask that the output has, in whatever shape and under whatever name."""
        iou = float(rle.iou([mask.segmentation], [before.segmentation])[0, 0])
        is_same, was = iou >= self.unchanged_iou, before.prompt.category_name
        self.found.prompts.setdefault(before.prompt.prompt_id, before.prompt)
        shape, iou = (before.segmentation, 1.0) if is_same else (mask.segmentation, iou)
        if mask.name != was:
            prompt = self.names.renamed(before.prompt, mask.name)
            self._take(prompt, shape, before.annotation_id, Change.RELABELED, iou=iou, was=was)
        else:
            change = Change.CONFIRMED if is_same else Change.MOVED
            self._take(before.prompt, shape, before.annotation_id, change, iou=iou)

    def delete(self, mask: HeldMask) -> None:
        """Leave out a mask that was deleted."""
        self.found.is_changed = True
        self.found.prompts.setdefault(mask.prompt.prompt_id, mask.prompt)
        self._note(mask.prompt, mask.annotation_id, Change.DELETED)

    def complete(self, labels: set[str]) -> None:
        """Complete the answers: by masks that were not shown, the categories of a map, and what is not there."""
        prompts, units = self.found.prompts, set(map(unit_of, self.found.prompts))
        for entry in self.found.image.row["per_prompt"]:
            prompt_id, number = entry["prompt_id"], entry["n"]
            task, _, name = prompt_id.partition(":")
            is_empty = number == 0 and task in CATEGORY_TASKS and task not in MAP_TASKS and name in labels
            is_part = number is not None and unit_of(prompt_id) in units
            if prompt_id not in prompts and (is_empty or (is_part and task in CATEGORY_TASKS)):
                prompts[prompt_id] = self.names.prompt_of(name, task)
        for mask in (mask for mask in self.unseen if unit_of(mask.prompt.prompt_id) in set(map(unit_of, prompts))):
            self.found.masks.append(_kept(mask))
            prompts.setdefault(mask.prompt.prompt_id, mask.prompt)

    def _take(self, prompt: Prompt, segmentation: Rle, name: str, change: Change, **told: Any) -> None:
        self.found.prompts.setdefault(prompt.prompt_id, prompt)
        self.found.masks.append(_mask(prompt, segmentation, name))
        self._note(prompt, name, change, **told)

    def _note(self, prompt: Prompt, name: str, change: Change, **told: Any) -> None:
        self.found.corrections.append(
            Correction(
                annotation_id=name,
                change=change,
                prompt_id=prompt.prompt_id,
                category_name=prompt.category_name,
                **self.who,
                **told,
            )
        )


def _mask(prompt: Prompt, segmentation: Rle, name: str) -> MaskPrediction:
    """Return a mask that a person vouches for: its score is 1, whatever threshold it is compared with."""
    return MaskPrediction(
        prompt=prompt,
        score=1.0,
        mask_score=None,
        segmentation=segmentation,
        bbox_xywh=rle.bbox_xywh(segmentation),
        area=rle.area(segmentation),
        annotation_id=name,
        is_human=True,
    )


def _kept(mask: HeldMask) -> MaskPrediction:
    """Return a mask as it is."""
    return replace(
        _mask(mask.prompt, mask.segmentation, mask.annotation_id),
        score=mask.score,
        mask_score=mask.mask_score,
        is_human=mask.is_human,
    )


def _caption(said: Mapping[str, Any], prompts: Mapping[str, Prompt]) -> Caption:
    phrases = sorted(said["phrases"] or (), key=lambda phrase: phrase["category_id"])
    return Caption(
        prompt=prompts[said["prompt_id"]],
        text=said["text"],
        phrases=tuple(CaptionPhrase(text=one["phrase"], start=one["start"], end=one["end"]) for one in phrases),
    )
