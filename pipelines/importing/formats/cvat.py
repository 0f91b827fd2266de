"""Read CVAT for images 1.1: masks and polygons of an XML file."""

from __future__ import annotations

import io
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from pipelines.errors import SourceError
from pipelines.importing.edited import (
    EditedFile,
    EditedImage,
    EditedMask,
    MaskError,
    mask_errors,
    size_of,
    text_of,
    with_pixels,
)
from pipelines.masks import rle
from pipelines.masks.polygons import from_polygons
from pipelines.redaction import quoted, shown
from pipelines.types import Rle

_SHAPES = ("mask", "polygon", "box", "ellipse", "polyline", "points", "cuboid", "skeleton")


def read_cvat(data: bytes, uri: str) -> EditedFile:
    """Read an XML file: an image's ``name`` is its image_id, and the attribute ``annotation_id`` of a mask its id.

    Raises:
        SourceError: it is no such file, or names an image twice.
    """
    try:
        _check(data, uri)
        images: dict[str, EditedImage] = {}
        names, author, edited_at = set[str](), None, None
        for _, element in ElementTree.iterparse(io.BytesIO(data), events=("end",)):
            if element.tag == "meta":  # before all images
                # The task, and the attributes of labels, have names too.
                names = {name.text for name in element.iterfind(".//label/name") if name.text}
                author = _first(element, "assignee/username") or _first(element, "owner/username")
                edited_at = _first(element, "updated") or _first(element, "dumped")
            elif element.tag == "track":
                raise SourceError(f"{uri}: tracks of a video; export the task as CVAT for images 1.1")
            elif element.tag == "image":
                image = _image(element, author, edited_at)
                if images.setdefault(image.image_id, image) is not image:
                    raise SourceError(f"{uri}: names the image {quoted(image.image_id)} twice")
                element.clear()
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{uri}: no file of CVAT for images 1.1 ({shown(str(error))})") from error
    if not images:
        raise SourceError(f"{uri}: no file of CVAT for images 1.1: it holds no image")
    return EditedFile(images=tuple(images.values()), names=frozenset(names))


def _check(data: bytes, uri: str) -> None:
    """Refuse a document type: none of CVAT's files has one, and its entities could fill the memory."""

    def refuse(*_: object) -> None:
        raise SourceError(f"{uri}: has a document type, which no file of CVAT has")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)


def _first(meta: ElementTree.Element, path: str) -> str | None:
    found = meta.find(f".//{path}")
    return None if found is None else text_of((found.text or "").strip())


def _image(element: ElementTree.Element, author: str | None, edited_at: str | None) -> EditedImage:
    size_hw = size_of(element.attrib["height"], element.attrib["width"])
    masks, problem = list[EditedMask](), ""
    for number, shape in enumerate((child for child in element if child.tag in _SHAPES), start=1):
        try:
            masks.append(_mask(f"{shape.tag} number {number}", shape, size_hw))
        except MaskError as error:
            problem = problem or str(error)
    ids = element.get("annotation_ids")
    return EditedImage(
        image_id=element.attrib["name"],
        size_hw=size_hw,
        masks=tuple(masks),
        shown=None if ids is None else frozenset(ids.split()),
        problem=problem,
        author=author,
        edited_at=edited_at,
    )


def _mask(what: str, shape: ElementTree.Element, size_hw: tuple[int, int]) -> EditedMask:
    with mask_errors(what):
        attributes: dict[Any, str | None] = {one.get("name"): one.text for one in shape.findall("attribute")}
        if shape.tag == "mask":
            segmentation = _from_runs(shape, size_hw)
        elif shape.tag == "polygon":
            points = [[float(number) for number in pair.split(",")] for pair in shape.attrib["points"].split(";")]
            segmentation = from_polygons([[number for pair in points for number in pair]], size_hw)
        else:
            raise MaskError(f"{what} is no mask: draw a mask or a polygon")
        return EditedMask(
            annotation_id=text_of((attributes.get("annotation_id") or "").strip()),
            name=shape.attrib["label"],
            segmentation=with_pixels(segmentation),
        )


def _from_runs(shape: ElementTree.Element, size_hw: tuple[int, int]) -> Rle:
    """Read run lengths along the rows of a mask's box, zeros first."""
    left, top, width, height = (int(shape.attrib[side]) for side in ("left", "top", "width", "height"))
    if min(left, top) < 0 or min(width, height) < 1 or left + width > size_hw[1] or top + height > size_hw[0]:
        raise ValueError(f"its box {left}, {top}, {width} x {height} does not lie in its image")
    runs = np.array(shape.attrib["rle"].split(","), np.int64)
    if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise ValueError(f"its run lengths do not cover its box of {width} x {height}")
    inside = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(height, width)
    return rle.encode_window(inside, (top, left), size_hw)
