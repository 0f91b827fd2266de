"""Parts of COCO files that several readers share: lists, categories, images, and annotations by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xsam_model.prompts.templates import CATEGORY_TASKS, clean_category
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
    RecordError,
    Skipped,
    clean_text,
    entry_id,
    read_json,
)
from xsam_model.training.datasets.segmentations import Segmentation, read_box, read_segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryList:
    """The closed category list of a data set.

    Attributes:
        names: distinct names as `clean_category` writes them, in the order of their ids.
        places: position of each id among the names; ids may share one.
        stuff: ids of stuff categories.
    """

    names: tuple[str, ...]
    places: Mapping[int, int]
    stuff: frozenset[int] = frozenset()

    def place(self, category_id: Any) -> int:
        """Return the position of a category among the names.

        Raises:
            RecordError: if there is no such category.
        """
        if category_id not in self.places:
            raise RecordError(UNKNOWN_CATEGORY, f"category_id {category_id!r}")
        return self.places[category_id]


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoImage:
    """One entry of `images` whose file exists."""

    file_name: str
    size_hw: tuple[int, int]


def read_coco(path: str | Path, *lists: str) -> dict[str, list[Any]]:
    """Read a COCO file.

    Args:
        path: path of the file.
        lists: names of the lists that it must contain.

    Raises:
        ValueError: if it is missing, not JSON, or lacks a list.
    """
    return check_lists(read_json(path, "a COCO file"), path, *lists)


def check_lists(document: Any, path: object, *lists: str) -> dict[str, list[Any]]:
    """Return the lists of a parsed COCO document.

    Raises:
        ValueError: if it lacks one.
    """
    for name in lists:
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise ValueError(f"{path}: no COCO file: expected an object with the lists {', '.join(lists)}; no {name!r}")
    return {name: document[name] for name in lists}


def read_categories(entries: list[Any], path: object) -> CategoryList:
    """Read `categories`.

    Raises:
        ValueError: if the list is empty, or one has no id or no usable name.
    """
    try:
        named = {int(entry["id"]): clean_category(clean_text(entry["name"])) for entry in entries}
        stuff = frozenset(int(entry["id"]) for entry in entries if not entry.get("isthing", 1))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: categories need an id and a name each: {error!r}") from error
    if not named or not all(named.values()):
        raise ValueError(f"{path}: the list of categories is empty or holds an empty name")
    names = tuple(dict.fromkeys(named[key] for key in sorted(named)))
    return CategoryList(names=names, places={key: names.index(named[key]) for key in sorted(named)}, stuff=stuff)


def read_image(entry: Any, folder: ImageFolder) -> CocoImage:
    """Read an entry of `images`.

    Raises:
        RecordError: if its file is missing.
        LookupError, TypeError, ValueError: if the entry is malformed.
    """
    height, width = int(entry["height"]), int(entry["width"])
    return CocoImage(file_name=folder.require(entry["file_name"]), size_hw=(height, width))


def read_images(entries: list[Any], folder: ImageFolder, skipped: Skipped) -> dict[Any, CocoImage]:
    """Return the usable images by id, counting the others in `skipped`."""
    found = {}
    for number, entry in enumerate(entries):
        with skipped.unless_usable(entry_id(entry, f"image {number}")):
            found[entry["id"]] = read_image(entry, folder)
    return found


def group_by_image(
    document: Mapping[str, list[Any]], folder: ImageFolder, skipped: Skipped
) -> list[tuple[Any, CocoImage, list[Any]]]:
    """Return id, image and annotations of each usable image, counting the others in `skipped`.

    Annotations of unlisted images are counted too; those of unusable images are not, since their image is.
    """
    usable = read_images(document["images"], folder, skipped)
    listed = (one.get("id") for one in document["images"] if isinstance(one, dict))
    ids = {image_id for image_id in listed if isinstance(image_id, int | str)}
    groups: dict[Any, list[Any]] = {image_id: [] for image_id in usable}
    for number, entry in enumerate(document["annotations"]):
        with skipped.unless_usable(annotation_id(entry, number)):
            if entry["image_id"] not in ids:
                raise RecordError(UNKNOWN_IMAGE, f"image_id {entry['image_id']!r}")
            if entry["image_id"] in groups:
                groups[entry["image_id"]].append(entry)
    return [(image_id, usable[image_id], entries) for image_id, entries in groups.items()]


def read_outline(
    entry: Mapping[str, Any], size_hw: tuple[int, int], ignored: list[Segmentation]
) -> Segmentation | None:
    """Read an annotation's mask; for a crowd append it to `ignored` and return None.

    Raises:
        RecordError: if it is invalid. Its box is then appended to `ignored` if it has one, since something is there.
    """
    try:
        outline = read_segmentation(entry.get("segmentation"), size_hw)
    except RecordError:
        ignored.append(read_box(entry.get("bbox")))
        raise
    if not entry.get("iscrowd"):
        return outline
    ignored.append(outline)
    return None


def annotation_id(entry: Any, number: int) -> str:
    """Return the name of an annotation in reports."""
    return f"annotation {entry_id(entry, f'number {number}')}"


def check_category_task(task: str) -> None:
    """Refuse a task that does not ask for categories.

    Raises:
        ValueError: names those that do.
    """
    if task not in CATEGORY_TASKS:
        raise ValueError(f"task must be one of {', '.join(CATEGORY_TASKS)}, got {task!r}")
