"""Turns the network's output into mask predictions and captions, encoding one dense mask at a time as RLE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.predictor.conversations import Conversation
from pipelines.masks import rle
from pipelines.table.schema import ranked
from pipelines.types import (
    PANOPTIC_TASKS,
    Answer,
    Caption,
    CaptionPhrase,
    MaskPrediction,
    Prompt,
    RejectedPrompt,
    Rle,
    Task,
)
from xsam_model.post_processing.calibration import NOT_CALIBRATED, ScoreCalibration
from xsam_model.post_processing.instances import interactive_segmentation, iter_instances, iter_phrases
from xsam_model.post_processing.maps import Segment, panoptic_segmentation, semantic_segmentation
from xsam_model.post_processing.mask_geometry import MAX_CHUNK_PIXELS, WindowedMask
from xsam_model.prompts import answers
from xsam_model.segmenter import SeenClosely

_SEMANTIC_TASKS = ("ovseg_semantic", "genseg_semantic")
# From this intersection over union on, masks of two conversations count as the same object.
_SAME_MASK_IOU = 0.8
_INSTANCE_TASKS = ("ovseg", "genseg", "vgdseg")


@dataclass(slots=True)
class ImagePredictions:
    """The masks, captions and rejected prompts of one image so far."""

    masks: dict[Task, list[MaskPrediction]] = field(default_factory=dict)
    captions: list[Caption] = field(default_factory=list)
    rejected: list[RejectedPrompt] = field(default_factory=list)

    def answer(self, max_masks: int) -> Answer:
        """Return all captions and rejected prompts, and the ``max_masks`` best masks of each task."""
        kept = [mask for found in self.masks.values() for mask in ranked(found)[:max_masks]]
        return Answer(masks=tuple(kept), captions=tuple(self.captions), rejected=tuple(self.rejected))


def find_masks(
    task: Task,
    decode: Mapping[str, Any],
    conversation: Conversation,
    *,
    min_score: float,
    max_chunk_pixels: int,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> Iterator[MaskPrediction]:
    """Yield the masks of one conversation.

    Args:
        task: what was asked.
        decode: from ``XSamProcessor.decode_arguments``.
        conversation: what was asked; for a generated caption its prompts are the phrases.
        min_score: masks with a lower score are dropped; empty masks always are.
        max_chunk_pixels: mask logits upsampled at once for a panoptic or semantic map, which needs those of all
            queries, in pixels.
        calibration: of the scores of masks that are no part of a map.

    Raises:
        FloatingPointError: the scores are not finite.
    """
    prompts = conversation.prompts
    if task in _INSTANCE_TASKS:
        found = _instances(decode, prompts, min_score, calibration)
    elif task in PANOPTIC_TASKS:
        stuff = [label for label, prompt in enumerate(prompts) if prompt.is_thing is False]
        # With threshold 0 every query competes for pixels: a higher min_score then drops rows but moves no outline.
        panoptic = panoptic_segmentation(**decode, stuff=stuff, threshold=0.0, max_chunk_pixels=max_chunk_pixels)
        found = _segments(panoptic.segmentation, panoptic.segments, prompts, min_score)
    elif task in _SEMANTIC_TASKS:
        # Smaller chunks hold fewer categories, and every further chunk upsamples all queries again.
        semantic = semantic_segmentation(**decode, max_chunk_pixels=max(MAX_CHUNK_PIXELS, max_chunk_pixels))
        found = _segments(semantic.labels, semantic.segments, prompts, min_score)
    elif task == "intseg":
        region = torch.as_tensor(conversation.regions[0])
        one = interactive_segmentation(**decode, prompt_mask=region, calibration=calibration)
        found = find_closely(SeenClosely(0, 0, one), prompts[0], decode["geometry"].original_size, min_score)
    else:
        found = _phrases(decode, prompts, min_score, calibration)
    return found


def without_doubles(masks: Sequence[MaskPrediction], parts: Mapping[str, int]) -> list[MaskPrediction]:
    """Drop masks that another conversation has found too, with a better score.

    Categories of one conversation compete for each mask inside the network; those of different conversations do here.

    Args:
        masks: masks of one image and task.
        parts: the conversation of each prompt_id.

    Returns:
        The remaining masks, best score first.
    """
    # In the same order as rows are ranked, so that ties are broken alike on every run.
    best_first = ranked(masks)
    overlaps = rle.iou([mask.segmentation for mask in best_first], [mask.segmentation for mask in best_first])
    part = np.array([parts[mask.prompt.prompt_id] for mask in best_first])
    kept: list[int] = []
    for place in range(len(best_first)):
        others = [other for other in kept if part[other] != part[place]]
        if not (overlaps[place, others] >= _SAME_MASK_IOU).any():
            kept.append(place)
    return [best_first[place] for place in kept]


def read_caption(prompt: Prompt, said: answers.Caption) -> Caption | None:
    """Return the generated text as a caption, or None if it is blank."""
    if not said.text.strip():
        return None
    phrases = tuple(CaptionPhrase(text=phrase.text, start=phrase.start, end=phrase.end) for phrase in said.phrases)
    return Caption(prompt=prompt, text=said.text, phrases=phrases)


def phrase_prompts(prompt: Prompt, said: answers.Caption) -> tuple[Prompt, ...]:
    """Return one prompt for each phrase of a caption, all with the caption's prompt_id."""
    return tuple(
        replace(prompt, text=phrase.text, category_name=phrase.text, category_id=number)
        for number, phrase in enumerate(said.phrases)
    )


def _instances(
    decode: Mapping[str, Any], prompts: Sequence[Prompt], min_score: float, calibration: ScoreCalibration
) -> Iterator[MaskPrediction]:
    """Encode the mask of each query once, and yield it for every label of the query."""
    size_hw = decode["geometry"].original_size
    for instances in iter_instances(**decode, threshold=min_score, calibration=calibration):
        encoded = _Encoded.of_windowed(instances.mask, size_hw)
        if encoded.area:
            for score, label in zip(instances.scores.tolist(), instances.labels.tolist(), strict=True):
                yield encoded.found(prompts[label], score, instances.mask.score.item())


def _segments(
    labels: torch.Tensor, segments: Sequence[Segment], prompts: Sequence[Prompt], min_score: float
) -> Iterator[MaskPrediction]:
    """Encode the segments of a map one by one."""
    ids = labels.cpu().numpy()
    for segment in segments:
        if segment.score >= min_score:
            yield _Encoded.of(ids == segment.id).found(prompts[segment.label], segment.score, segment.mask_score)


def _phrases(
    decode: Mapping[str, Any], prompts: Sequence[Prompt], min_score: float, calibration: ScoreCalibration
) -> Iterator[MaskPrediction]:
    """Encode one mask for each prompt; of a generated answer that names more phrases, the first ones count."""
    found: dict[int, MaskPrediction] = {}
    size_hw = decode["geometry"].original_size
    for phrases in iter_phrases(**decode, calibration=calibration):
        mask = phrases.mask
        scores = zip(phrases.labels.tolist(), phrases.scores.tolist(), strict=True)
        # A phrase of a generated caption may be blank.
        kept = {at: score for at, score in scores if at < len(prompts) and score >= min_score and prompts[at].text}
        if kept:
            encoded = _Encoded.of_windowed(mask, size_hw)
            if encoded.area:
                found |= {at: encoded.found(prompts[at], score, mask.score.item()) for at, score in kept.items()}
    # Masks come query by query, rows in the order of the prompts.
    yield from (found[at] for at in sorted(found))


def find_closely(
    seen: SeenClosely, prompt: Prompt, size_hw: tuple[int, int], min_score: float
) -> Iterator[MaskPrediction]:
    """Encode the one mask that a visual prompt stands for (intseg), from the window in which it was found.

    Args:
        seen: the mask.
        prompt: the visual prompt.
        size_hw: size of the whole image.
        min_score: a mask with a lower score is dropped; an empty one always is.
    """
    score = seen.found.scores.item()
    if score >= min_score and prompt.text:
        encoded = _Encoded.of_window(seen.found.masks[0].cpu().numpy(), (seen.top, seen.left), size_hw)
        if encoded.area:
            yield encoded.found(prompt, score, seen.found.mask_scores.item())


@dataclass(frozen=True, slots=True)
class _Encoded:
    segmentation: Rle
    bbox_xywh: tuple[float, float, float, float]
    area: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> _Encoded:
        return cls(rle.encode(mask), _box(mask, (0, 0)), int(np.count_nonzero(mask)))

    @classmethod
    def of_windowed(cls, mask: WindowedMask, size_hw: tuple[int, int]) -> _Encoded:
        # From a GPU only the positions where the mask changes are copied, which is all that RLE needs.
        if mask.inside.device.type != "cpu":
            return cls.of_changes(mask.changes(size_hw[0]).numpy(), size_hw)
        return cls.of_window(mask.inside.numpy(), (mask.top, mask.left), size_hw)

    @classmethod
    def of_window(cls, inside: NDArray[np.bool_], top_left: tuple[int, int], size_hw: tuple[int, int]) -> _Encoded:
        segmentation = rle.encode_window(inside, top_left, size_hw)
        return cls(segmentation, _box(inside, top_left), int(np.count_nonzero(inside)))

    @classmethod
    def of_changes(cls, changes: NDArray[np.int64], size_hw: tuple[int, int]) -> _Encoded:
        """Encode what `WindowedMask.changes` returns: pairs of start and end, as every run ends within its column."""
        starts, ends = changes[::2], changes[1::2]
        box = (0.0, 0.0, 0.0, 0.0)
        if len(starts):
            columns = starts // size_hw[0]
            x, y = columns[0], (starts - columns * size_hw[0]).min()
            box = (float(x), float(y), float(columns[-1] + 1 - x), float((ends - columns * size_hw[0]).max() - y))
        return cls(rle.from_changes(changes, size_hw), box, int((ends - starts).sum()))

    def found(self, prompt: Prompt, score: float, mask_score: float | None) -> MaskPrediction:
        return MaskPrediction(
            prompt=prompt,
            score=min(1.0, score),
            mask_score=None if mask_score is None else min(1.0, mask_score),
            segmentation=self.segmentation,
            bbox_xywh=self.bbox_xywh,
            area=self.area,
        )


def _box(inside: NDArray[np.bool_], top_left: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the box (x, y, w, h) around the set pixels of a window, in image pixels; zeros if no pixel is set."""
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    if not len(rows):
        return (0.0, 0.0, 0.0, 0.0)
    (y, x), height, width = top_left, rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    return (float(x + columns[0]), float(y + rows[0]), float(width), float(height))
