"""COCO instances as categories to segment. Panoptic annotations and visual prompts are in modules of their own."""

from __future__ import annotations

from dataclasses import dataclass
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
    read_images,
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
class InstancesRecord(Record):
    """An image with its objects.

    Attributes:
        segmentations: one for each object.
        labels: position of each object's category in the list.
        ignored: crowds, and the boxes of objects whose segmentation is invalid.
    """

    segmentations: tuple[Segmentation, ...]
    labels: tuple[int, ...]
    ignored: tuple[Segmentation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskInstances:
    """Turns an `InstancesRecord` into a training sample whose conditions are all categories of the file."""

    source: str
    task: str
    names: tuple[str, ...]

    def __call__(
        self, record: InstancesRecord, image: NDArray[np.uint8], random: np.random.Generator
    ) -> TrainingSample:
        """Return the sample: a mask for each object; pixels of crowds are ignored unless an object covers them."""
        del random
        size = image.shape[:2]
        masks = rasterize(record.segmentations, size)
        return TrainingSample(
            image=image,
            task=self.task,
            conditions=self.names,
            masks=masks,
            labels=np.array(record.labels, dtype=np.int64),
            ignore=ignored_pixels(record.ignored, masks),
            source=self.source,
        )


def instances(
    annotations: str, images: str, *, task: str = "genseg", name: str | None = None, empty_images: bool = False
) -> RecordSource[InstancesRecord]:
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
    usable = read_images(document["images"], folder, skipped)
    groups = group_by_image(document["annotations"], document["images"], usable, skipped)
    records = []
    for image_id, entries in groups.items():
        record = read_instances(image_id, usable[image_id], entries, categories, skipped)
        if record.segmentations or empty_images:
            records.append(record)
        else:
            skipped.add(NOTHING_ANNOTATED, image_id)
    name = name or f"coco-instances-{task}"
    return RecordSource(
        name=name,
        where=annotations,
        records=records,
        skipped=skipped,
        open_image=folder.open,
        make=AskInstances(source=name, task=task, names=categories.names),
        categories=categories.names,
    )


def read_instances(
    image_id: Any, image: CocoImage, entries: list[Any], categories: CategoryList, skipped: Skipped
) -> InstancesRecord:
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
    return InstancesRecord(
        record_id=str(image_id),
        image=image.file_name,
        size_hw=image.size_hw,
        segmentations=tuple(found),
        labels=tuple(labels),
        ignored=tuple(ignored),
    )


__all__ = ["instances", "panoptic", "visual_prompts"]
