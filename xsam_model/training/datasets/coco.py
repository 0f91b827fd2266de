"""COCO instances as categories to segment. Panoptic annotations and visual prompts are in modules of their own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.datasets.coco_file import (
    CategoryList,
    CocoImage,
    annotation_id,
    check_category_task,
    group_by_image,
    read_categories,
    read_coco,
    read_outline,
)
from xsam_model.training.datasets.coco_panoptic import panoptic
from xsam_model.training.datasets.coco_prompts import visual_prompts
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import NOTHING_ANNOTATED, Record, RecordSource, Skipped
from xsam_model.training.datasets.segmentations import (
    Segmentation,
    ignored_pixels,
    rasterize,
)
from xsam_model.training.samples.samples import TrainingSample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MasksRecord(Record):
    """An image with what is asked about it, and the masks of its objects.

    Attributes:
        conditions: categories, phrases or questions; those without a mask are negatives.
        segmentations, labels: masks, and the position of each one's condition.
        ignored: what is neither a positive nor a negative, such as crowds, objects whose segmentation is invalid (as
            boxes), and masks that are too uncertain; their pixels are excluded from the loss.
    """

    conditions: tuple[str, ...]
    segmentations: tuple[Segmentation, ...]
    labels: tuple[int, ...]
    ignored: tuple[Segmentation, ...] = ()


def ask_masks(
    record: MasksRecord, image: NDArray[np.uint8], random: np.random.Generator, *, task: str
) -> TrainingSample:
    """Turn a record into a training sample of all its conditions, in their order.

    Ignored pixels count where an object covers them.
    """
    del random
    masks = rasterize(record.segmentations, image.shape[:2])
    return TrainingSample(
        image=image,
        task=task,
        conditions=record.conditions,
        masks=masks,
        labels=np.array(record.labels, dtype=np.int64),
        ignore=ignored_pixels(record.ignored, masks),
    )


def instances(
    annotations: str, images: str, *, task: str = "genseg", name: str | None = None, empty_images: bool = False
) -> RecordSource[MasksRecord]:
    """Open COCO instances; samples ask for every category of the file.

    Args:
        annotations: JSON file, e.g. `instances_train2017.json`.
        images: folder of its images.
        task: "genseg" or "ovseg".
        name: name of the source; "coco-instances-<task>" by default.
        empty_images: whether images without objects are samples in which every category is absent. Correct only if all
            categories were annotated exhaustively in them.

    Returns:
        A source whose samples have a bool mask (H, W) for each object. Pixels of crowds, and of the boxes of objects
        whose segmentation is invalid, are ignored.

    Raises:
        ValueError: if the task is another one, a file or folder is missing or in another format, or nothing is usable.
    """
    check_category_task(task)
    document = read_coco(annotations, "images", "annotations", "categories")
    categories = read_categories(document["categories"], annotations)
    folder, skipped = ImageFolder(images), Skipped()
    records = []
    for image_id, image, entries in group_by_image(document, folder, skipped):
        record = read_instances(image_id, image, entries, categories, skipped)
        if record.segmentations or empty_images:
            records.append(record)
        else:
            skipped.add(NOTHING_ANNOTATED, image_id)
    name = name or f"coco-instances-{task}"
    ask, names = partial(ask_masks, task=task), categories.names
    return RecordSource(name, annotations, records, skipped, open_image=folder.open, make=ask, categories=names)


def read_instances(
    image_id: Any, image: CocoImage, entries: list[Any], categories: CategoryList, skipped: Skipped
) -> MasksRecord:
    """Read the objects of an image, counting unusable ones in `skipped`."""
    found: list[Segmentation] = []
    labels: list[int] = []
    ignored: list[Segmentation] = []
    for number, entry in enumerate(entries):
        with skipped.unless_usable(annotation_id(entry, number)):
            label = categories.place(entry["category_id"])
            if outline := read_outline(entry, image.size_hw, ignored):
                found.append(outline)
                labels.append(label)
    return MasksRecord(
        record_id=str(image_id),
        image=image.file_name,
        size_hw=image.size_hw,
        conditions=categories.names,
        segmentations=tuple(found),
        labels=tuple(labels),
        ignored=tuple(ignored),
    )


__all__ = ["MasksRecord", "ask_masks", "instances", "panoptic", "visual_prompts"]
