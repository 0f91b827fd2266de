"""Read Label Studio's JSON: tasks with submitted annotations, brushes and polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SourceError
from pipelines.importing.edited import (
    EditedFile,
    EditedImage,
    EditedMask,
    MaskError,
    mask_errors,
    parsed_json,
    size_of,
    text_of,
    with_pixels,
)
from pipelines.masks import rle
from pipelines.masks.polygons import from_polygons
from pipelines.redaction import quoted

_CHANNELS = 4
_NO_SHAPES = ("choices", "textarea", "rating", "relation", "taxonomy", "number", "datetime", "pairwise")


def read_label_studio(data: bytes, uri: str) -> EditedFile:
    """Read a JSON export (not JSON-MIN). A task's ``data.image_id`` is the image_id, a region's ``id`` its mask's.

    Of several annotations of a task the one that was updated last counts; skipped ones (``was_cancelled``) do not.

    Raises:
        SourceError: it is no such file, no annotation was submitted, or two tasks are about one image.
    """
    document = parsed_json(data, uri)
    if not isinstance(document, list) or not all(isinstance(task, dict) for task in document):
        raise SourceError(f"{uri}: no export of Label Studio: it is a list of tasks; choose JSON, not JSON-MIN")
    images, num_unreviewed = dict[str, EditedImage](), 0
    for number, task in enumerate(document, start=1):
        values = task.get("data")
        image_id = text_of(values.get("image_id")) if isinstance(values, dict) else None
        if image_id is None:
            raise SourceError(f"{uri}: task number {number} has no data.image_id; choose JSON, not JSON-MIN")
        annotation = _submitted(task)
        if annotation is None:
            num_unreviewed += 1
            continue
        image = _image(image_id, annotation, values.get("annotation_ids"))
        if images.setdefault(image_id, image) is not image:
            raise SourceError(f"{uri}: two tasks are about the image {quoted(image_id)}")
    if not images:
        raise SourceError(f"{uri}: none of its {len(document):,} tasks has a submitted annotation: nothing to import")
    names = frozenset(mask.name for image in images.values() for mask in image.masks)
    return EditedFile(images=tuple(images.values()), names=names, num_unreviewed=num_unreviewed)


def exported_ids(data: bytes, uri: str) -> dict[str, frozenset[str]]:
    """Return the ids of the masks of each image of a file of tasks as it was exported.

    Raises:
        SourceError: it does not tell them.
    """
    document = parsed_json(data, uri)
    try:
        return {str(task["data"]["image_id"]): frozenset(task["data"]["annotation_ids"]) for task in document}
    except (KeyError, TypeError) as error:
        raise SourceError(f"{uri}: no tasks as `xsam-label export` writes them: {error}") from error


def _submitted(task: Mapping[str, Any]) -> Mapping[str, Any] | None:
    given = task.get("annotations")
    submitted = [
        one
        for one in (given if isinstance(given, list) else ())
        if isinstance(one, dict) and isinstance(one.get("result"), list) and not one.get("was_cancelled")
    ]
    return max(submitted, key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""), default=None)


def _image(image_id: str, annotation: Mapping[str, Any], shown: Any) -> EditedImage:
    masks, problem, size_hw = list[EditedMask](), "", None
    for number, region in enumerate(annotation["result"], start=1):
        what = f"region number {number}"
        try:
            with mask_errors(what):
                if region["type"] in _NO_SHAPES:
                    continue
                size_hw = size_hw or size_of(region["original_height"], region["original_width"])
                masks += _masks(what, region, size_hw)
        except MaskError as error:
            problem = problem or str(error)
    by = annotation.get("completed_by")
    return EditedImage(
        image_id=image_id,
        size_hw=size_hw,
        masks=tuple(masks),
        shown=frozenset(map(str, shown)) if isinstance(shown, list) else None,
        is_reviewed=True,
        problem=problem,
        author=text_of(by.get("email")) or text_of(by.get("id")) if isinstance(by, dict) else text_of(by),
        edited_at=text_of(annotation.get("updated_at")) or text_of(annotation.get("created_at")),
    )


def _masks(what: str, region: Mapping[str, Any], size_hw: tuple[int, int]) -> list[EditedMask]:
    """Read a region: a mask for each of its labels, of which a tool may allow several."""
    kind, value = region["type"], region["value"]
    if (int(region["original_height"]), int(region["original_width"])) != size_hw or region.get("image_rotation"):
        raise MaskError(f"{what} is of an image that is turned or of another size")
    if kind == "brushlabels":
        segmentation = rle.encode(_decoded(value["rle"], size_hw))
    elif kind == "polygonlabels":
        scale = (size_hw[1] / 100, size_hw[0] / 100)  # points are percentages of the image's sides
        segmentation = from_polygons(
            [[float(side) * factor for point in value["points"] for side, factor in zip(point, scale, strict=True)]],
            size_hw,
        )
    else:
        raise MaskError(f"{what} is no mask but {quoted(kind)}: draw it with the brush")
    names = value.get(kind)
    if not names or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MaskError(f"{what} has no label")
    drawn, known = with_pixels(segmentation), text_of(region.get("id"))
    return [EditedMask(annotation_id=known, name=name, segmentation=drawn) for name in dict.fromkeys(names)]


def _decoded(stream: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a brush, see ``export.formats.label_studio.brush_rle``: bool (H, W), set where there is any opacity.

    Raises:
        ValueError: it is cut short, or not of this size.
    """
    if not isinstance(stream, list):  # of a number n, bytes() would make n zeros
        raise ValueError("its rle is no list of numbers")
    data = bytes(stream)
    place, end = 0, 8 * len(data)

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > end:
            raise ValueError("its run lengths are cut short")
        # Of few bytes around: shifting the whole number would take time that grows with its square.
        first = (place - count) // 8
        last = -(-place // 8)
        window = int.from_bytes(data[first:last], "big")
        return window >> (8 * last - place) & ((1 << count) - 1)

    num_pixels = size_hw[0] * size_hw[1]
    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    if total != num_pixels * _CHANNELS or word != 8:
        raise ValueError(f"its run lengths cover {total:,} bytes, its image {num_pixels * _CHANNELS:,}")
    values, lengths, left = list[int](), list[int](), total
    while left > 0:
        is_run = read(1)
        length = read(widths[read(2)]) + 1
        left -= length
        values += [read(word)] if is_run else [read(word) for _ in range(length)]
        lengths += [length] if is_run else [1] * length
    if left:
        raise ValueError("its run lengths cover more than its image")
    opacity = np.repeat(np.array(values, np.uint8), lengths).reshape(num_pixels, _CHANNELS)[:, -1]
    return (opacity > 0).reshape(size_hw)
