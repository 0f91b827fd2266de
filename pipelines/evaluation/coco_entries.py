"""Entries of COCO files as other people's tools write them: images, categories, annotations, flags and masks.

What cannot be used is left out entry by entry, with its field and value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import some_of
from pipelines.evaluation.left_out import EntryError, LeftOut
from pipelines.masks import rle
from pipelines.masks.polygons import from_polygons
from pipelines.redaction import counted, quoted
from pipelines.types import Rle

_FLAGS: Mapping[Any, bool] = {None: False, 0: False, 1: True, "0": False, "1": True, "": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoLists:
    """The usable entries of a COCO file.

    Attributes:
        images: (height, width) of every image by its ``file_name``.
        names: each category's name by its id.
        things: for each category name, whether it is a thing (``isthing``, true if it is not there).
        annotations: for each annotation of an image its name for messages, the image's ``file_name``, and the entry.
    """

    images: Mapping[str, tuple[int, int]]
    names: Mapping[Any, str]
    things: Mapping[str, bool]
    annotations: Sequence[tuple[str, str, Mapping[str, Any]]]

    def category_of(self, entry: Mapping[str, Any]) -> str:
        """Return the name of an entry's category.

        Raises:
            EntryError: it names none of the file.
        """
        return self.names[_known(entry, "category_id", self.names, "category")]


def read_lists(document: Mapping[str, Any], left_out: LeftOut) -> CocoLists:
    """Read a COCO file's images, categories and annotations.

    Args:
        document: the file.
        left_out: collects images without a usable size or a name of their own, annotations of no image, and the like.

    Raises:
        KeyError, TypeError: it has no list of images or categories.
        SourceError: an entry is left out, and the truth is read strictly.
    """
    listed = {_id(entry) for entry in document["images"]}
    images = _images(document["images"], left_out)
    names, things = _categories(document["categories"], left_out)
    annotations = []
    for number, entry in enumerate(document["annotations"]):
        what = entry_name(entry, number)
        with left_out.unless_usable(what):
            if not isinstance(entry, Mapping):
                raise EntryError("not an object", quoted(entry))
            image_id = _known(entry, "image_id", listed, "image")
            if image_id in images:  # else the image is left out, and counted itself
                annotations.append((what, images[image_id][0], entry))
    return CocoLists(images=dict(images.values()), names=names, things=things, annotations=annotations)


def entry_name(entry: Any, number: int) -> str:
    """Return an annotation's name for messages: its id, or its place in the file if it has none."""
    known = entry.get("id") if isinstance(entry, Mapping) else None
    return f"annotation number {number + 1:,}" if known is None else f"annotation {quoted(known)}"


def _images(entries: Sequence[Any], left_out: LeftOut) -> dict[Any, tuple[str, tuple[int, int]]]:
    """Return the (file_name, (height, width)) of usable images by id.

    Ids and file names must be an image's own: which of two an annotation or a picture belongs to, nobody can say.
    """
    found: dict[Any, tuple[str, tuple[int, int]]] = {}
    owner: dict[str, Any] = {}
    doubled: set[Any] = set()
    for number, entry in enumerate(entries):
        what = f"image {quoted(_id(entry))}" if _id(entry) is not None else f"image number {number + 1:,}"
        with left_out.unless_usable(what):
            if _id(entry) is None:
                raise EntryError("an image without an id", quoted(entry))
            image = (_text(entry, "file_name"), (_side(entry, "height"), _side(entry, "width")))
            if found.setdefault(entry["id"], image) != image:
                doubled.add(entry["id"])
            elif owner.setdefault(image[0], entry["id"]) != entry["id"]:
                doubled |= {entry["id"], owner[image[0]]}
    for key in doubled:
        file_name = found.pop(key)[0]
        left_out.add(f"image {quoted(key)}", "several images have one id or one file_name", quoted(file_name))
    return found


def _categories(entries: Sequence[Any], left_out: LeftOut) -> tuple[dict[Any, str], dict[str, bool]]:
    names: dict[Any, str] = {}
    things: dict[str, bool] = {}
    doubled: set[Any] = set()
    for number, entry in enumerate(entries):
        with left_out.unless_usable(f"category number {number + 1:,}"):
            if _id(entry) is None:
                raise EntryError("a category without an id", quoted(entry))
            name = _text(entry, "name")
            if names.setdefault(entry["id"], name) != name:
                doubled.add(entry["id"])
            things.setdefault(name, read_flag(entry.get("isthing", 1), "isthing"))
    if shared := sorted(name for name, count in Counter(names.values()).items() if count > 1):
        left_out.told.append(
            f"{counted(len(shared), 'name of the truth has', 'names of the truth have')} several ids, compared as "
            f"one: {some_of(shared)}"
        )
    for key in doubled:
        left_out.add(f"category {quoted(key)}", "several categories have one id", f"one is {quoted(names.pop(key))}")
    return names, things


def _id(entry: Any) -> Any:
    """Return an entry's id; None if it has none that could be one."""
    known = entry.get("id") if isinstance(entry, Mapping) else None
    return known if isinstance(known, int | str | float) else None


def _known(entry: Mapping[str, Any], field: str, known: Any, what: str) -> Any:
    """Return the value of a field that names an image or a category."""
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int | str | float) or value not in known:
        raise EntryError(f"{field} is no {what} of the file", f"{field} {quoted(value)}")
    return value


def _text(entry: Mapping[str, Any], field: str) -> str:
    value = entry.get(field)
    if value is None or value == "" or isinstance(value, list | dict):
        raise EntryError(f"no {field}", f"{field} {quoted(value)}")
    return str(value)


def _side(entry: Mapping[str, Any], field: str) -> int:
    """Return a height or width in pixels; exporters that go through a data frame write 480.0."""
    value = entry.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or not 0 < value < 2**31:
        raise EntryError(f"{field} is no number of pixels", f"{field} {quoted(value)}")
    return int(value)


def read_flag(value: Any, field: str) -> bool:
    """Read a flag: 0 or 1, true or false, also as text; false if it is missing.

    Raises:
        EntryError: it is something else.
    """
    if isinstance(value, list | dict) or value not in _FLAGS:
        raise EntryError(f"{field} is neither 0 nor 1", f"{field} {quoted(value)}")
    return _FLAGS[value]


def read_mask(segmentation: Any, size_hw: tuple[int, int] | None) -> Rle:
    """Convert a mask in any of COCO's forms to RLE.

    Args:
        segmentation: RLE, compressed or as run lengths; polygons as lists of x, y in absolute pixels; a list of
            RLEs, for their union; None for an empty mask.
        size_hw: (height, width) of the image; required unless the mask is RLE.

    Raises:
        ValueError: the mask is broken or of no known form, or its size is missing or differs from the image's.
    """
    if isinstance(segmentation, Mapping):
        own = tuple(int(side) for side in segmentation["size"])
        if size_hw is not None and own != size_hw:
            raise ValueError(f"its mask is {size_words(own)}, but its image {size_words(size_hw)}")
        counts = segmentation["counts"]
        mask = Rle((own[0], own[1]), counts) if isinstance(counts, str) else rle.from_runs((own[0], own[1]), counts)
        return rle.canonical(mask)  # also checks it, so that a broken mask is reported with its entry
    if size_hw is None:
        raise ValueError("a mask that is no RLE needs height and width beside it")
    if not segmentation:
        return rle.from_runs(size_hw, [size_hw[0] * size_hw[1]])
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise ValueError("a polygon is a list of at least three x, y")
    if all(isinstance(part, Mapping) for part in segmentation):
        return rle.union([read_mask(part, size_hw) for part in segmentation])
    return from_polygons(segmentation, size_hw)


def size_words(size_hw: Sequence[int]) -> str:
    """Return a size (height, width) as messages tell it: width first."""
    return f"{size_hw[1]} x {size_hw[0]} pixels"
