"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: referring expressions for one object of an image (or several, or none)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.datasets.coco_file import CocoImage, read_coco, read_images
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.plain_pickles import read_plain_pickle
from xsam_model.training.datasets.records import (
    MALFORMED,
    UNKNOWN_IMAGE,
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

UNKNOWN_ANNOTATION = "unknown annotation"


@dataclass(frozen=True, slots=True, eq=False)
class Sentence:
    """A referring expression and the objects that it refers to; none if it refers to nothing in the image."""

    text: str
    objects: tuple[Segmentation, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SentencesRecord(Record):
    """Referring expressions for one image."""

    sentences: tuple[Sentence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSentences:
    """Turns a record of referring expressions into a training sample of some of them, with a mask for each."""

    sentences: int

    def __call__(
        self, record: SentencesRecord, image: NDArray[np.uint8], random: np.random.Generator
    ) -> TrainingSample:
        """Return the sample."""
        size = image.shape[:2]
        order = random.permutation(len(record.sentences))[: self.sentences]
        chosen = [record.sentences[place] for place in order]
        masks = [(place, one.mask(size)) for place, said in enumerate(chosen) for one in said.objects]
        return TrainingSample(
            image=image,
            task="refseg",
            conditions=tuple(said.text for said in chosen),
            masks=np.stack([mask for _, mask in masks]) if masks else np.zeros((0, *size), dtype=np.bool_),
            labels=np.array([place for place, _ in masks], dtype=np.int64),
        )


def refcoco(
    refs: str,
    instances: str,
    images: str,
    *,
    split: str = "train",
    sentences: int = 1,
    name: str | None = None,
) -> RecordSource[SentencesRecord]:
    """Open referring expressions.

    Args:
        refs: `refs(unc).p`, `refs(umd).p`, `refs(google).p`, or the same list as JSON. Each record has `ref_id`,
            `image_id`, `split`, `ann_id` (gRefCOCO: several, or -1 for none) and `sentences` with their text in `sent`.
            Pickles are read as plain data: one that refers to a class is refused.
        instances: `instances.json` from the same folder, with the segmentations.
        images: folder of the images, COCO's `train2014`.
        split: "train", "val", "testA", ..., as in the file.
        sentences: 1 to make one sample of each sentence; more to make one of each image, with up to so many sentences.
        name: name of the source; "refcoco-<folder of the refs>" by default.

    Returns:
        A source whose samples have a condition for each sentence, and bool masks (H, W) of the objects it refers to.

    Raises:
        ValueError: if a file or folder is missing or in another format, the split has no record, or none is usable.
    """
    if sentences < 1:
        raise ValueError(f"sentences must be 1 or more, got {sentences}")
    chosen = _of_split(refs, split)
    folder, skipped = ImageFolder(images), Skipped()
    usable, by_image = _read_sentences(chosen, instances, folder, skipped)
    name = name or f"refcoco-{Path(refs).parent.name}"
    records = _records(by_image, usable, one_each=sentences == 1)
    ask = AskSentences(sentences=sentences)
    return RecordSource(name, refs, records, skipped, open_image=folder.open, make=ask)


def _read_sentences(
    refs: list[dict[str, Any]], instances: str, folder: ImageFolder, skipped: Skipped
) -> tuple[dict[Any, CocoImage], dict[Any, list[Sentence]]]:
    """Return the usable images by id, and the sentences about each."""
    document = read_coco(instances, "images", "annotations")
    wanted = {ref["image_id"] for ref in refs}
    # instances.json lists the images of all splits; those of others need not be there.
    entries = [one for one in document["images"] if isinstance(one, dict) and one.get("id") in wanted]
    usable = read_images(entries, folder, skipped)
    # Sentences about an unusable image are left out with it, and counted as one.
    left_out = {one["id"] for one in entries} - usable.keys()
    outlines = {one["id"]: one for one in document["annotations"] if isinstance(one, dict) and "id" in one}
    by_image: dict[Any, list[Sentence]] = {}
    for number, ref in enumerate(refs):
        if ref["image_id"] not in left_out:
            with skipped.unless_usable(f"ref {ref.get('ref_id', f'number {number}')}"):
                said = _read_ref(ref, usable, outlines)
                by_image.setdefault(ref["image_id"], []).extend(said)
    return usable, by_image


def _of_split(path: str, split: str) -> list[dict[str, Any]]:
    """Return the records of a split.

    Raises:
        ValueError: if there are none, or a record has no split and image.
    """
    refs = as_list(read_json(path, "refs") if path.endswith(".json") else read_plain_pickle(path), path, "refs")
    for number, ref in enumerate(refs):
        if not isinstance(ref, dict) or not isinstance(ref.get("split"), str):
            raise ValueError(f"{path}: record {number} is no ref: each needs a split and an image_id")
    if chosen := [ref for ref in refs if ref["split"] == split and isinstance(ref.get("image_id"), int | str)]:
        return chosen
    known = ", ".join(sorted({ref["split"] for ref in refs}))
    raise ValueError(f"{path}: no record is of the split {split!r}; it has {known or 'no record at all'}")


def _read_ref(ref: Mapping[str, Any], images: Mapping[Any, CocoImage], outlines: Mapping[Any, Any]) -> list[Sentence]:
    """Return the distinct sentences of a record, which refer to the same objects."""
    if ref["image_id"] not in images:
        raise RecordError(UNKNOWN_IMAGE, f"image_id {ref['image_id']!r}")
    size = images[ref["image_id"]].size_hw
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    objects = []
    for annotation in ids if ids != [-1] else []:
        if annotation not in outlines:
            raise RecordError(UNKNOWN_ANNOTATION, f"ann_id {annotation!r}")
        objects.append(read_segmentation(outlines[annotation]["segmentation"], size))
    texts = dict.fromkeys(clean_text(sentence["sent"]).lower() for sentence in ref["sentences"])
    if not texts:
        raise RecordError(MALFORMED, "no sentences")
    return [Sentence(text, tuple(objects)) for text in texts]


def _records(
    by_image: Mapping[Any, list[Sentence]], images: Mapping[Any, CocoImage], one_each: bool
) -> list[SentencesRecord]:
    records = []
    for image_id, said in by_image.items():
        image = images[image_id]
        for group in [[one] for one in said] if one_each else [said]:
            records.append(
                SentencesRecord(
                    record_id=str(image_id), image=image.file_name, size_hw=image.size_hw, sentences=tuple(group)
                )
            )
    return records
