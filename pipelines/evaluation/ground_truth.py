"""Read ground truth: COCO instances, COCO panoptic with its folder of PNGs, and lists of phrases with masks.

Masks of COCO files are converted to RLE lazily, image by image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from pycocotools import mask as coco_mask

from pipelines.bounded_json import MAX_DOCUMENT_BYTES, load_json
from pipelines.errors import SourceError
from pipelines.evaluation.map_metrics import Segment
from pipelines.images.decode import DEFAULT_LIMITS
from pipelines.masks import rle
from pipelines.redaction import quoted
from pipelines.sources.tabular import source_errors
from pipelines.storage.filesystems import open_filesystem, read_range
from pipelines.types import Rle, Task

# At 40 bytes for each pixel of an outline, drawing takes up to 170 MB.
_MAX_OUTLINE_PX = 2**22
PHRASE_TASKS: tuple[Task, ...] = ("refseg", "reaseg", "intseg", "gcgseg")  # the tasks that a list of phrases fits


@dataclass(frozen=True, slots=True)
class TrueObject:
    """One object of an image: its category's name, its mask, and whether it is a crowd (COCO's ``iscrowd``)."""

    category: str
    segmentation: Rle
    is_crowd: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTruth:
    """A COCO instances file.

    Attributes:
        uri: where it was read.
        images: (height, width) of every image by its ``file_name``.
        categories: all category names, in the file's order, including those without an object.
        entries: the file's annotations by ``file_name``, each with its category's name added.
    """

    uri: str
    images: Mapping[str, tuple[int, int]]
    categories: tuple[str, ...]
    entries: Mapping[str, Sequence[Mapping[str, Any]]]

    def objects(self, file_name: str) -> list[TrueObject]:
        """Return the objects of an image; empty if the file lists none.

        Raises:
            SourceError: a mask is broken, or differs in size from its image.
        """
        objects = []
        for entry in self.entries.get(file_name, ()):
            with _explained(self.uri, f"annotation {quoted(entry.get('id'))} of {file_name}"):
                mask = read_mask(entry["segmentation"], self.images[file_name])
                objects.append(TrueObject(entry["category"], mask, bool(entry.get("iscrowd", 0))))
        return objects


@dataclass(frozen=True, slots=True, kw_only=True)
class PanopticTruth:
    """A COCO panoptic file and the folder of its maps.

    Attributes:
        uri: where it was read.
        png_folder: folder of the maps; a pixel holds its segment's id as R + 256 G + 65536 B, 0 for void.
        images: (height, width) of every image by its ``file_name``.
        categories: for each category name, whether it is a thing.
        entries: the file's annotation of each ``file_name``, with the category's name added to its segments.
    """

    uri: str
    png_folder: str
    images: Mapping[str, tuple[int, int]]
    categories: Mapping[str, bool]
    entries: Mapping[str, Mapping[str, Any]]

    def segments(self, file_name: str) -> list[Segment]:
        """Return the segments of an image, which do not overlap; uncovered pixels are void.

        Raises:
            SourceError: the map is missing, not a PNG, of another size, or contains an id that the file does not list.
        """
        entry = self.entries[file_name]
        uri = f"{self.png_folder.rstrip('/')}/{entry['file_name']}"
        ids = _read_ids(uri, self.images[file_name])
        infos = {int(info["id"]): info for info in entry["segments_info"]}
        if unknown := sorted({*np.unique(ids).tolist()} - {0, *infos}):
            raise SourceError(f"{uri}: holds segment ids that {self.uri} does not list: {unknown[:5]}")
        return [
            Segment(info["category"], rle.encode(ids == number), bool(info.get("iscrowd", 0)))
            for number, info in infos.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TruePhrase:
    """One entry of a list of phrases.

    Attributes:
        file_name: its image.
        task: one of PHRASE_TASKS; None if the entry does not say, which means refseg, reaseg or intseg.
        phrase, prompt_id: what was asked, by text or by id; the other one is None.
        segmentation: the true mask; empty if there is nothing to find.
        ignored: pixels that count neither as right nor as wrong; None for none.
    """

    file_name: str
    task: Task | None
    phrase: str | None
    prompt_id: str | None
    segmentation: Rle
    ignored: Rle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseTruth:
    """A list of phrases: its URI, (height, width) of its images by ``file_name``, and its entries."""

    uri: str
    images: Mapping[str, tuple[int, int]]
    phrases: tuple[TruePhrase, ...]


GroundTruth = InstanceTruth | PanopticTruth | PhraseTruth


def read_ground_truth(uri: str, *, png_folder: str | None = None) -> GroundTruth:
    """Read a ground truth file; the form is recognised by its content.

    Args:
        uri: path or URI of a JSON file.
        png_folder: folder of the maps of COCO panoptic; by default beside the file, with its name without ``.json``.

    Raises:
        SourceError: the file cannot be read, is not JSON, has none of the three forms, or has a broken entry.
    """
    document = _read_json(uri)
    if isinstance(document, list):
        return _phrases(uri, document)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        forms = "COCO instances, COCO panoptic, or a list of {file_name, phrase or prompt_id, segmentation}"
        raise SourceError(f"{uri}: not a ground truth of a known form: {forms}")
    with _explained(uri, "the file"):
        if not all(isinstance(entry, dict) for entry in document["annotations"]):
            raise ValueError("its annotations are no objects")
        images = {
            entry["id"]: (str(entry["file_name"]), (entry["height"], entry["width"])) for entry in document["images"]
        }
        names = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
        if len({file_name for file_name, _ in images.values()}) < len(images):
            # Images are matched by file_name, so it must be unique here, unlike in COCO.
            raise ValueError("several images have one file_name")
        if any("segments_info" in entry for entry in document["annotations"]):
            return _panoptic(uri, document, images, names, png_folder)
    return _instances(uri, document, images, names)


_Images = Mapping[Any, tuple[str, tuple[int, int]]]


def _instances(uri: str, document: Mapping[str, Any], images: _Images, names: Mapping[Any, str]) -> InstanceTruth:
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in document["annotations"]:
        with _explained(uri, f"annotation {quoted(entry.get('id'))}"):
            file_name, _ = images[entry["image_id"]]
            entries.setdefault(file_name, []).append({**entry, "category": names[entry["category_id"]]})
    if not entries:
        raise SourceError(f"{uri}: holds no annotations")
    return InstanceTruth(uri=uri, images=dict(images.values()), categories=tuple(names.values()), entries=entries)


def _panoptic(
    uri: str, document: Mapping[str, Any], images: _Images, names: Mapping[Any, str], png_folder: str | None
) -> PanopticTruth:
    """Read COCO panoptic; images without a map are dropped, since nothing is known about them."""
    things = {names[entry["id"]]: bool(entry["isthing"]) for entry in document["categories"]}
    entries = {}
    for entry in document["annotations"]:
        with _explained(uri, f"the annotation of image {quoted(entry.get('image_id'))}"):
            file_name, _ = images[entry["image_id"]]
            infos = [{**info, "category": names[info["category_id"]]} for info in entry["segments_info"]]
            entries[file_name] = {"file_name": entry["file_name"], "segments_info": infos}
    sizes = {file_name: size_hw for file_name, size_hw in images.values() if file_name in entries}
    folder = png_folder or uri.removesuffix(PurePosixPath(uri).suffix)
    return PanopticTruth(uri=uri, png_folder=folder, images=sizes, categories=things, entries=entries)


def _phrases(uri: str, document: Sequence[Any]) -> PhraseTruth:
    phrases, sizes = list[TruePhrase](), dict[str, tuple[int, int]]()
    for number, entry in enumerate(document):
        with _explained(uri, f"entry {number}"):
            phrase = _phrase(entry)
            size_hw = phrase.segmentation.size_hw
            if (known := sizes.setdefault(phrase.file_name, size_hw)) != size_hw:
                raise ValueError(f"its mask is {_size(size_hw)}, another of {phrase.file_name} {_size(known)}")
            phrases.append(phrase)
    if not phrases:
        raise SourceError(f"{uri}: the list is empty")
    return PhraseTruth(uri=uri, images=sizes, phrases=tuple(phrases))


def _phrase(entry: Mapping[str, Any]) -> TruePhrase:
    phrase, prompt_id = entry.get("phrase"), entry.get("prompt_id")
    task = next((known for known in PHRASE_TASKS if known == entry.get("task")), None)
    if task is None and entry.get("task") is not None:
        raise ValueError(f"task {quoted(entry['task'])} is none of {', '.join(PHRASE_TASKS)}")
    if task != "gcgseg" and (phrase is None) == (prompt_id is None):
        raise ValueError("give either phrase or prompt_id")
    segmentation = read_mask(entry["segmentation"], (entry["height"], entry["width"]) if "height" in entry else None)
    ignored = None if entry.get("ignore") is None else read_mask(entry["ignore"], segmentation.size_hw)
    return TruePhrase(
        file_name=str(entry["file_name"]),
        task=task,
        phrase=None if phrase is None else str(phrase),
        prompt_id=None if prompt_id is None else str(prompt_id),
        segmentation=segmentation,
        ignored=ignored,
    )


def read_mask(segmentation: Any, size_hw: tuple[int, int] | None) -> Rle:
    """Convert a mask in any of COCO's forms to RLE.

    Args:
        segmentation: RLE, compressed or as run lengths; polygons as lists of x, y in absolute pixels; None for an
            empty mask.
        size_hw: (height, width) of the image; required unless the mask is RLE.

    Raises:
        ValueError: the mask is broken or of no known form, or its size is missing or differs from the image's.
    """
    if isinstance(segmentation, Mapping):
        own = tuple(int(side) for side in segmentation["size"])
        if size_hw is not None and own != size_hw:
            raise ValueError(f"its mask is {_size(own)}, but its image {_size(size_hw)}")
        counts = segmentation["counts"]
        mask = Rle((own[0], own[1]), counts) if isinstance(counts, str) else rle.from_runs((own[0], own[1]), counts)
        return rle.canonical(mask)  # also checks it, so that a broken mask is reported with its entry
    if size_hw is None:
        raise ValueError("a mask that is no RLE needs height and width beside it")
    if not segmentation:
        return rle.from_runs(size_hw, [size_hw[0] * size_hw[1]])
    if not all(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation):
        raise ValueError("a polygon is a list of at least three x, y")
    _check_outlines(segmentation)
    parts = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
    return Rle(size_hw=size_hw, counts=parts["counts"].decode("ascii"))


def _check_outlines(polygons: Sequence[Sequence[float]]) -> None:
    """Refuse polygons with very long outlines: pycocotools takes 40 bytes for each pixel of them.

    Raises:
        ValueError: the outlines are too long, or a coordinate is not a number.
    """
    length = 0.0
    for polygon in polygons:
        corners = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        length += float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
    # Not "length >": that would let NaN through.
    if not length <= _MAX_OUTLINE_PX:
        raise ValueError(f"its polygons have an outline of {length:,.0f} pixels; at most {_MAX_OUTLINE_PX:,} are drawn")


def _read_ids(uri: str, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Read the segment ids of a panoptic map, int32 (H, W), and check its size against the image's."""
    data = _read(uri, DEFAULT_LIMITS.max_image_bytes)
    try:
        with PILImage.open(io.BytesIO(data)) as image:
            if (image.height, image.width) != size_hw:
                raise SourceError(f"{uri}: is {_size((image.height, image.width))}, but its image {_size(size_hw)}")
            if image.height * image.width > DEFAULT_LIMITS.max_image_pixels:
                raise SourceError(f"{uri}: {_size(size_hw)} are more than {DEFAULT_LIMITS.max_image_pixels:,} in all")
            red, green, blue = (np.asarray(band, dtype=np.int32) for band in image.convert("RGB").split())
    except (UnidentifiedImageError, OSError, PILImage.DecompressionBombError) as error:
        raise SourceError(f"{uri}: not a readable PNG: {error}") from error
    ids: NDArray[np.int32] = red + 256 * green + 65536 * blue
    return ids


def _read_json(uri: str) -> Any:
    data = _read(uri)
    try:
        return load_json(data)
    except ValueError as error:
        raise SourceError(f"{uri}: not JSON: {error}") from error


def _read(uri: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
    with source_errors(uri):
        fs, path = open_filesystem(uri)
        data = read_range(fs, path, 0, max_bytes + 1)
    if len(data) > max_bytes:
        raise SourceError(f"{uri}: more than {max_bytes:,} bytes; give the truth in several files, and evaluate each")
    return data


@contextlib.contextmanager
def _explained(uri: str, what: str) -> Iterator[None]:
    """Raise a SourceError that names the broken entry in place of the exceptions of reading it."""
    try:
        yield
    except SourceError:
        raise
    except KeyError as error:
        raise SourceError(f"{uri}: {what} has no {error}, or names one that is not there") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{uri}: {what}: {error}") from error


def _size(size_hw: Sequence[int]) -> str:
    return f"{size_hw[1]} x {size_hw[0]} pixels"
