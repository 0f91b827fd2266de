"""GranD-f: captions whose phrases have masks (grounded conversation generation), in the three formats of its files.

The formats, according to the public readers (mbzuai-oryx/groundingLMM, `dataset/gcg_datasets/GranDf_gcg_ds.py`;
wanghao9610/X-SAM, `xsam/xsam/dataset/gcgseg_dataset.py`):

* GranDf_HA and OpenPsgGCG: a list of `{"file_name", "caption", "groundings": {phrase: {"token_positives": [start, end],
  "rle_masks": [...]}}}`; positions count characters of the caption.
* RefCOCOg_GCG: a list of `{id: {"img_file_name", "caption", "refs": [{"sentence", "segmentation"}]}}`.
* flickr_mergedGT_GCG: a COCO file whose images have a `caption`, and whose annotations have `tokens_positive`, a list
  of [start, end] of which the first counts, and the run lengths `sam_mask`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, SEG_TOKEN
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    NOTHING_ANNOTATED,
    Record,
    RecordError,
    RecordSource,
    Skipped,
    as_list,
    clean_text,
    read_json,
)
from xsam_model.training.datasets.segmentations import Segmentation, read_segmentation
from xsam_model.training.samples.samples import TrainingSample

NOT_IN_CAPTION = "phrase not in its caption"
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CaptionRecord(Record):
    """An image with a caption.

    Attributes:
        answer: the caption with its phrases marked, and `<SEG>`.
        phrases: for each marked phrase the parts of its mask, in the order of the caption.
    """

    answer: str
    phrases: tuple[tuple[Segmentation, ...], ...]


def ask_caption(record: CaptionRecord, image: NDArray[np.uint8], random: np.random.Generator) -> TrainingSample:
    """Turn a grounded caption into a training sample that asks for it, with one mask for each phrase."""
    del random
    size = image.shape[:2]
    masks = np.stack([np.any([part.mask(size) for part in parts], axis=0) for parts in record.phrases])
    labels = np.arange(len(masks), dtype=np.int64)
    return TrainingSample(image=image, task="gcgseg", answer=record.answer, masks=masks, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """One caption of a file before its phrases are parsed, each as (phrase or None, position or None, segmentation)."""

    record_id: str
    file_name: Any
    caption: Any
    size: tuple[Any, Any]
    phrases: list[tuple[str | None, Any, Any]]


def grandf(
    annotations: str, images: str, *, lower_case: bool = True, name: str = "grandf"
) -> RecordSource[CaptionRecord]:
    """Open grounded captions.

    Args:
        annotations: JSON file in one of the three formats above, recognized by its content.
        images: folder of its images.
        lower_case: lower-case captions, as in X-SAM's training; False to leave them as they are.
        name: name of the source; give each file its own.

    Returns:
        A source whose samples have the caption as their answer, with phrases marked as `<p>phrase</p>` and `<SEG>` at
        the end, and one bool mask (H, W) for each phrase, the union of its parts. Of overlapping phrases only the first
        is marked.

    Raises:
        ValueError: if a file or folder is missing or in another format, or nothing is usable.
    """
    folder, skipped = ImageFolder(images), Skipped()
    records = []
    for found in _captions(read_json(annotations, "grounded captions"), annotations, skipped):
        with skipped.unless_usable(found.record_id):
            records.append(_read_caption(found, folder, skipped, lower_case))
    return RecordSource(name, annotations, records, skipped, open_image=folder.open, make=ask_caption)


def mark_phrases(caption: str, spans: list[Span]) -> str:
    """Return a caption as an answer, with its phrases marked and `<SEG>` at the end.

    Args:
        caption: plain text.
        spans: start and end of each phrase in characters, in ascending order and without overlaps.
    """
    parts, last = [], 0
    for start, end in spans:
        parts += [caption[last:start], PHRASE_START, caption[start:end], PHRASE_END]
        last = end
    return f"{''.join(parts)}{caption[last:]} {SEG_TOKEN}"


def _captions(document: Any, path: str, skipped: Skipped) -> Iterator[_Found]:
    if isinstance(document, dict) and "images" in document and "annotations" in document:
        yield from _flickr_captions(document, skipped)
        return
    for number, entry in enumerate(as_list(document, path, "grounded captions")):
        found = None
        with skipped.unless_usable(f"record {number}"):
            found = _grandf_caption(entry, number) if "groundings" in entry else _refcocog_caption(entry, number)
        if found is not None:
            yield found


def _grandf_caption(entry: Mapping[str, Any], number: int) -> _Found:
    return _Found(
        record_id=str(entry.get("image_id", f"record {number}")),
        file_name=entry["file_name"],
        caption=entry["caption"],
        size=(entry.get("height"), entry.get("width")),
        phrases=[
            (phrase, grounding.get("token_positives"), grounding["rle_masks"])
            for phrase, grounding in entry["groundings"].items()
        ],
    )


def _refcocog_caption(entry: Mapping[str, Any], number: int) -> _Found:
    key, inner = (f"record {number}", entry) if "refs" in entry else next(iter(entry.items()), ("", {}))
    return _Found(
        record_id=str(key),
        file_name=inner["img_file_name"],
        caption=inner["caption"],
        size=(inner.get("height"), inner.get("width")),
        phrases=[(ref["sentence"], None, ref["segmentation"]) for ref in inner["refs"]],
    )


def _flickr_captions(document: Mapping[str, Any], skipped: Skipped) -> Iterator[_Found]:
    groups: dict[Any, list[tuple[str | None, Any, Any]]] = {}
    for number, entry in enumerate(document["annotations"]):
        with skipped.unless_usable(f"annotation number {number}"):
            place = entry["tokens_positive"][0]
            groups.setdefault(entry["image_id"], []).append((None, place, entry["sam_mask"]))
    for number, entry in enumerate(document["images"]):
        found = None
        with skipped.unless_usable(f"image number {number}"):
            found = _Found(
                record_id=str(entry["id"]),
                file_name=entry["file_name"],
                caption=entry["caption"],
                size=(entry.get("height"), entry.get("width")),
                phrases=groups.get(entry["id"], []),
            )
        if found is not None:
            yield found


def _read_caption(found: _Found, folder: ImageFolder, skipped: Skipped, lower_case: bool) -> CaptionRecord:
    image = folder.require(found.file_name)
    caption = clean_text(found.caption).strip('"').strip()
    height, width = found.size
    size = (int(height), int(width)) if height is not None and width is not None else None
    by_span: dict[Span, list[Segmentation]] = {}
    for phrase, place, value in found.phrases:
        with skipped.unless_usable(f"{phrase or place} of {found.record_id}"):
            span = _find_phrase(caption, phrase, place)
            outline = read_segmentation(value, size)
            # Parts of one phrase's mask may be listed separately.
            by_span.setdefault(span, []).append(outline)
    spans: list[Span] = []
    for span in sorted(by_span):
        # `<p>` cannot be nested.
        if not spans or span[0] >= spans[-1][1]:
            spans.append(span)
    if not spans:
        raise RecordError(NOTHING_ANNOTATED, "no phrase with a mask")
    answer = mark_phrases(caption, spans)
    if lower_case:
        # Of the marks only `<SEG>` has capitals.
        answer = answer.lower().replace(SEG_TOKEN.lower(), SEG_TOKEN)
    return CaptionRecord(
        record_id=found.record_id,
        image=image,
        size_hw=size,
        answer=answer,
        phrases=tuple(tuple(by_span[span]) for span in spans),
    )


def _find_phrase(caption: str, phrase: str | None, place: Any) -> Span:
    """Return start and end of a phrase: the position in the file if it is correct, else the first occurrence."""
    start, end = (int(number) for number in place) if place is not None else (-1, -1)
    words = None if phrase is None else phrase.strip('"').strip().lower()
    if 0 <= start < end <= len(caption) and words in (None, caption[start:end].lower()):
        return start, end
    start = caption.lower().find(words) if words else -1
    if start < 0 or words is None:
        raise RecordError(NOT_IN_CAPTION, f"{phrase!r} at {place!r} in {caption!r}")
    return start, start + len(words)
