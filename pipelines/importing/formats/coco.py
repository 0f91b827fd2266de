"""Read COCO instances as this project and other tools write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import SourceError
from pipelines.evaluation.coco_entries import CocoLists, read_lists, read_mask
from pipelines.evaluation.left_out import LeftOut
from pipelines.importing.edited import (
    EditedFile,
    EditedImage,
    EditedMask,
    MaskError,
    mask_errors,
    parsed_json,
    text_of,
    with_pixels,
)


def read_coco(data: bytes, uri: str) -> EditedFile:
    """Read a COCO instances file: ``file_name`` is the image_id, masks are RLE or polygons.

    Raises:
        SourceError: it is none, or its images, categories and annotations do not fit each other.
    """
    document, left_out = parsed_json(data, uri), LeftOut(uri, noun="the file")
    parts = ("images", "annotations", "categories")
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in parts):
        raise SourceError(f"{uri}: no COCO instances file: it needs lists of {', '.join(parts)}")
    lists = read_lists(document, left_out)
    if left_out:  # what belongs to no image might be what seems to be deleted from one
        raise SourceError(f"{uri}: its parts do not fit each other: {left_out}. Nothing was imported")
    info = _object(document.get("info"))
    author, edited_at = text_of(info.get("contributor")), text_of(info.get("date_created"))
    masks: dict[str, list[EditedMask]] = {file_name: [] for file_name in lists.images}
    problems: dict[str, str] = {}
    for what, file_name, entry in lists.annotations:
        try:
            masks[file_name].append(_mask(what, entry, lists, lists.images[file_name]))
        except MaskError as error:
            problems.setdefault(file_name, str(error))
    shown = {str(entry["file_name"]): _ids(entry.get("annotation_ids")) for entry in document["images"]}
    images = tuple(
        EditedImage(
            image_id=file_name,
            size_hw=size_hw,
            masks=tuple(masks[file_name]),
            shown=shown[file_name],
            problem=problems.get(file_name, ""),
            author=author,
            edited_at=edited_at,
        )
        for file_name, size_hw in lists.images.items()
    )
    return EditedFile(images=images, names=frozenset(lists.names.values()))


def _mask(what: str, entry: Mapping[str, Any], lists: CocoLists, size_hw: tuple[int, int]) -> EditedMask:
    with mask_errors(what):
        segmentation = entry.get("segmentation")
        if not segmentation or segmentation == [[]]:
            raise MaskError(f"{what} has no mask")
        # CVAT keeps what it does not know among its attributes.
        attributes = _object(entry.get("attributes"))
        return EditedMask(
            annotation_id=text_of(entry.get("annotation_id")) or text_of(attributes.get("annotation_id")),
            name=lists.category_of(entry),
            segmentation=with_pixels(read_mask(segmentation, size_hw)),
            task=text_of(entry.get("task")),
        )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _ids(value: Any) -> frozenset[str] | None:
    return frozenset(map(str, value)) if isinstance(value, list) else None
