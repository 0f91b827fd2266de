"""COCO panoptic annotations as categories to segment: one mask for each thing, one for each category of stuff."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.datasets.coco_file import (
    CategoryList,
    CocoImage,
    check_category_task,
    group_by_image,
    read_categories,
    read_coco,
)
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    MALFORMED,
    NOTHING_ANNOTATED,
    OTHER_SIZE,
    Record,
    RecordError,
    RecordSource,
    Skipped,
)
from xsam_model.training.samples.samples import TrainingSample

MISSING_SEGMENTS = "segments image missing"
UNREADABLE_SEGMENTS = "segments image unreadable"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PanopticRecord(Record):
    """An image with its segments.

    Attributes:
        segments_image: file name of the PNG of segment ids.
        segments: pairs of segment id and position of its category in the list.
    """

    segments_image: str
    segments: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSegments:
    """Turns a `PanopticRecord` into a training sample whose conditions are all categories of the file."""

    task: str
    categories: CategoryList
    stuff: frozenset[int]
    folder: Path

    def __call__(self, record: PanopticRecord, image: NDArray[np.uint8], random: np.random.Generator) -> TrainingSample:
        """Return the sample: a mask for each thing and one for each category of stuff; all other pixels are ignored."""
        del random
        ids = read_segment_ids(self.folder / record.segments_image)
        if ids.shape != image.shape[:2]:
            raise RecordError(OTHER_SIZE, f"segments of {ids.shape} for an image of {image.shape[:2]}")
        masks: list[NDArray[np.bool_]] = []
        labels: list[int] = []
        stuff: dict[int, int] = {}
        for segment, label in record.segments:
            mask = ids == segment
            if label in self.stuff and label in stuff:
                masks[stuff[label]] |= mask
                continue
            if label in self.stuff:
                stuff[label] = len(masks)
            masks.append(mask)
            labels.append(label)
        stacked = np.stack(masks)
        return TrainingSample(
            image=image,
            task=self.task,
            conditions=self.categories.names,
            masks=stacked,
            labels=np.array(labels, dtype=np.int64),
            ignore=np.asarray(~stacked.any(0)),
        )


def panoptic(
    annotations: str, images: str, segments: str, *, task: str = "genseg", name: str | None = None
) -> RecordSource[PanopticRecord]:
    """Open COCO panoptic annotations.

    Args:
        annotations: JSON file, e.g. `panoptic_train2017.json`.
        images: folder of its images.
        segments: folder of the PNG files whose colors are segment ids: red + 256 green + 65,536 blue.
        task: "genseg" or "ovseg".
        name: name of the source; "coco-panoptic-<task>" by default.

    Returns:
        A source whose samples have a bool mask (H, W) for each thing, and one for each category of stuff
        (`"isthing": 0`). Pixels of no segment, of crowds and of unknown categories are ignored.

    Raises:
        ValueError: if the task is another one, a file or folder is missing or in another format, or nothing is usable.
    """
    check_category_task(task)
    document = read_coco(annotations, "images", "annotations", "categories")
    categories = read_categories(document["categories"], annotations)
    folder, segments_folder, skipped = ImageFolder(images), ImageFolder(segments), Skipped()
    records = []
    for image_id, image, entries in group_by_image(document, folder, skipped):
        for entry in entries:
            with skipped.unless_usable(image_id):
                records.append(_read_segments(image_id, image, entry, categories, segments_folder, skipped))
        if not entries:
            skipped.add(NOTHING_ANNOTATED, image_id)
    name = name or f"coco-panoptic-{task}"
    stuff = frozenset(categories.places[one] for one in categories.stuff)
    ask = AskSegments(task=task, categories=categories, stuff=stuff, folder=segments_folder.path)
    names = categories.names
    return RecordSource(name, annotations, records, skipped, open_image=folder.open, make=ask, categories=names)


def read_segment_ids(path: Path) -> NDArray[np.int64]:
    """Return the segment ids of a panoptic PNG, int64 (H, W), 0 for no segment.

    Raises:
        RecordError: if it is missing, broken, or not an RGB image.
    """
    try:
        with Image.open(path) as file:
            if file.mode not in ("RGB", "RGBA"):
                raise RecordError(UNREADABLE_SEGMENTS, f"{path}: colors are ids, but its mode is {file.mode}")
            # Widened, because ids have 24 bits.
            colors = np.asarray(file, dtype=np.int64)
    except FileNotFoundError as error:
        raise RecordError(MISSING_SEGMENTS, str(path)) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecordError(UNREADABLE_SEGMENTS, f"{path}: {error}") from error
    return colors[..., 0] + 256 * colors[..., 1] + 65_536 * colors[..., 2]


def _read_segments(
    image_id: Any, image: CocoImage, entry: Any, categories: CategoryList, folder: ImageFolder, skipped: Skipped
) -> PanopticRecord:
    try:
        segments_image = folder.require(entry["file_name"])
    except RecordError as error:
        raise RecordError(MISSING_SEGMENTS, error.detail) from error
    segments = []
    for segment in entry["segments_info"]:
        with skipped.unless_usable(f"segment {segment['id']} of {image_id}"):
            label = categories.place(segment["category_id"])
            if not segment.get("iscrowd"):
                segments.append((int(segment["id"]), label))
    if len({one for one, _ in segments}) < len(segments) or not segments:
        raise RecordError(MALFORMED if segments else NOTHING_ANNOTATED, "no segments, or ids that are used twice")
    return PanopticRecord(
        record_id=str(image_id),
        image=image.file_name,
        size_hw=image.size_hw,
        segments_image=segments_image,
        segments=tuple(segments),
    )
