"""Read ground truth: COCO instances, COCO panoptic with its folder of PNGs, and lists of phrases with masks.

Masks of COCO files are converted to RLE lazily, image by image. Entries that cannot be used are left out and counted
(see left_out.py).
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

from pipelines.bounded_json import MAX_DOCUMENT_BYTES, load_json
from pipelines.errors import SourceError, some_of
from pipelines.evaluation.coco_entries import CocoLists, read_flag, read_lists, read_mask, size_words
from pipelines.evaluation.left_out import EntryError, LeftOut
from pipelines.evaluation.map_metrics import Segment
from pipelines.images.decode import DEFAULT_LIMITS
from pipelines.masks import rle
from pipelines.redaction import counted, quoted
from pipelines.sources.tabular import source_errors
from pipelines.storage.filesystems import open_filesystem, read_range
from pipelines.types import Rle, Task

_NO_PIXEL = "a mask without a pixel of its image"
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
        entries: the file's annotations by ``file_name``, each with its name for messages.
        names: the category's name by its id in the annotations.
        left_out: collects what cannot be used; masks are added as they are read.
    """

    uri: str
    images: Mapping[str, tuple[int, int]]
    categories: tuple[str, ...]
    entries: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
    names: Mapping[Any, str]
    left_out: LeftOut

    def objects(self, file_name: str) -> list[TrueObject]:
        """Return the objects of an image that can be found: masks that are broken or have no pixel are left out.

        Raises:
            SourceError: one is left out, and the truth is read strictly.
        """
        objects = []
        for what, entry in self.entries.get(file_name, ()):
            with self.left_out.unless_usable(f"{what} of {file_name}"):
                mask = _visible_mask(entry, self.images[file_name])
                is_crowd = read_flag(entry.get("iscrowd"), "iscrowd")
                objects.append(TrueObject(self.names[entry["category_id"]], mask, is_crowd))
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
        left_out: collects what cannot be used; maps are added as they are read.
    """

    uri: str
    png_folder: str
    images: Mapping[str, tuple[int, int]]
    categories: Mapping[str, bool]
    entries: Mapping[str, Mapping[str, Any]]
    left_out: LeftOut

    def segments(self, file_name: str) -> list[Segment] | None:
        """Return the segments of an image, which do not overlap; uncovered pixels are void.

        None if the image is left out: its map is missing, not a PNG, of another size, or contains an id that the file
        does not list.

        Raises:
            SourceError: it is left out, and the truth is read strictly.
        """
        entry = self.entries[file_name]
        uri = f"{self.png_folder.rstrip('/')}/{entry['file_name']}"
        try:
            ids = _read_ids(uri, self.images[file_name])
            shown = {*np.unique(ids).tolist()}
            if unknown := sorted(shown - {0, *entry["all_ids"]}):
                raise SourceError(f"{uri}: holds segment ids that the truth does not list: {unknown[:5]}")
        except SourceError as error:
            self.left_out.add(f"the map of {file_name}", "the map cannot be used", str(error))
            return None
        for number in sorted(entry["segments_info"].keys() - shown):
            self.left_out.add(f"segment {number} of {file_name}", _NO_PIXEL)
        return [
            Segment(info["category"], rle.encode(ids == number), info["iscrowd"])
            for number, info in entry["segments_info"].items()
            if number in shown
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
    """A list of phrases: its URI, (height, width) of its images by ``file_name``, its entries, and what is left out."""

    uri: str
    images: Mapping[str, tuple[int, int]]
    phrases: tuple[TruePhrase, ...]
    left_out: LeftOut


GroundTruth = InstanceTruth | PanopticTruth | PhraseTruth


def read_ground_truth(uri: str, *, png_folder: str | None = None, is_strict: bool = False) -> GroundTruth:
    """Read a ground truth file; the form is recognized by its content.

    Args:
        uri: path or URI of a JSON file.
        png_folder: folder of the maps of COCO panoptic; by default beside the file, with its name without ``.json``.
        is_strict: whether to refuse a file with an entry that cannot be used, instead of leaving the entry out.

    Raises:
        SourceError: the file cannot be read, is not JSON, has none of the three forms, or no entry that can be used.
    """
    document, left_out = _read_json(uri), LeftOut(uri, is_strict)
    if isinstance(document, list):
        return _phrases(document, left_out)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        forms = "COCO instances, COCO panoptic, or a list of {file_name, phrase or prompt_id, segmentation}"
        raise SourceError(f"{uri}: not a ground truth of a known form: {forms}")
    with _explained(uri, "the file"):
        lists = read_lists(document, left_out)
    if not lists.annotations and not left_out.notes():
        raise SourceError(f"{uri}: holds no annotations")
    is_panoptic = any("segments_info" in entry for _, _, entry in lists.annotations)
    truth = _panoptic(lists, png_folder, left_out) if is_panoptic else _instances(lists, left_out)
    if not truth.entries:
        raise SourceError(
            f"{uri}: none of its {counted(len(document['annotations']), 'annotation')} can be used: {left_out}"
        )
    return truth


def _instances(lists: CocoLists, left_out: LeftOut) -> InstanceTruth:
    entries: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for what, file_name, entry in lists.annotations:
        with left_out.unless_usable(what):
            lists.category_of(entry)
            entries.setdefault(file_name, []).append((what, entry))
    categories = tuple(dict.fromkeys(lists.names.values()))
    return InstanceTruth(
        uri=left_out.uri,
        images=lists.images,
        categories=categories,
        entries=entries,
        names=lists.names,
        left_out=left_out,
    )


def _visible_mask(entry: Mapping[str, Any], size_hw: tuple[int, int]) -> Rle:
    """Return the mask of an annotation.

    Raises:
        EntryError: it has none, or one without a pixel: an object that nothing could find.
        ValueError: as for read_mask.
    """
    segmentation = entry.get("segmentation")
    if not segmentation or segmentation == [[]]:
        raise EntryError("no mask", f"segmentation {quoted(segmentation)}")
    mask = read_mask(segmentation, size_hw)
    if not rle.area(mask):
        raise EntryError(_NO_PIXEL)
    return mask


def _panoptic(lists: CocoLists, png_folder: str | None, left_out: LeftOut) -> PanopticTruth:
    """Read COCO panoptic; images without a map are dropped, since nothing is known about them."""
    maps, infos = dict[str, dict[str, None]](), dict[str, list[Any]]()
    for what, file_name, entry in lists.annotations:
        with left_out.unless_usable(what):
            png, own = str(entry["file_name"]), list(entry["segments_info"])
            maps.setdefault(file_name, {})[png] = None
            infos.setdefault(file_name, []).extend(own)  # some exporters list the segments of one map one by one
    entries = {}
    for file_name, pngs in maps.items():
        if len(pngs) > 1:
            left_out.add(f"image {quoted(file_name)}", "several maps of one image", some_of(pngs))
            continue
        segments, all_ids = _segments(file_name, infos[file_name], lists, left_out)
        entries[file_name] = {"file_name": next(iter(pngs)), "segments_info": segments, "all_ids": all_ids}
    sizes = {file_name: size_hw for file_name, size_hw in lists.images.items() if file_name in entries}
    folder = png_folder or left_out.uri.removesuffix(PurePosixPath(left_out.uri).suffix)
    return PanopticTruth(
        uri=left_out.uri,
        png_folder=folder,
        images=sizes,
        categories=lists.things,
        entries=entries,
        left_out=left_out,
    )


def _segments(
    file_name: str, infos: Sequence[Any], lists: CocoLists, left_out: LeftOut
) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Return the segments of a map by id, and the ids of all that are listed, usable or not."""
    found, all_ids, doubled = dict[int, dict[str, Any]](), set[int](), set[int]()
    for place, info in enumerate(infos):
        with left_out.unless_usable(f"segment {quoted(info.get('id', place))} of {file_name}"):
            all_ids.add(int(info["id"]))
            segment = {"category": lists.category_of(info), "iscrowd": read_flag(info.get("iscrowd"), "iscrowd")}
            if found.setdefault(int(info["id"]), segment) != segment:
                doubled.add(int(info["id"]))
    for number in sorted(doubled):
        one = f"one is {quoted(found.pop(number)['category'])}"
        left_out.add(f"segment {number} of {file_name}", "several segments of one map have one id", one)
    return found, all_ids


def _phrases(document: Sequence[Any], left_out: LeftOut) -> PhraseTruth:
    phrases, sizes = list[TruePhrase](), dict[str, tuple[int, int]]()
    for number, entry in enumerate(document):
        with left_out.unless_usable(f"entry {number}"):
            phrase = _phrase(entry)
            size_hw = phrase.segmentation.size_hw
            if (known := sizes.setdefault(phrase.file_name, size_hw)) != size_hw:
                raise ValueError(
                    f"its mask is {size_words(size_hw)}, another of {phrase.file_name} {size_words(known)}"
                )
            phrases.append(phrase)
    if not document:
        raise SourceError(f"{left_out.uri}: the list is empty")
    if not phrases:
        is_coco = isinstance(document[0], Mapping) and "image_id" in document[0]
        advice = (
            "; these are annotations without their images and categories: give the whole COCO file" if is_coco else ""
        )
        raise SourceError(
            f"{left_out.uri}: none of its {counted(len(document), 'entry', 'entries')} can be used: {left_out}{advice}"
        )
    return PhraseTruth(uri=left_out.uri, images=sizes, phrases=tuple(phrases), left_out=left_out)


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


def _read_ids(uri: str, size_hw: tuple[int, int]) -> NDArray[np.int32]:
    """Read the segment ids of a panoptic map, int32 (H, W), and check its size against the image's."""
    data = _read(uri, DEFAULT_LIMITS.max_image_bytes)
    try:
        with PILImage.open(io.BytesIO(data)) as image:
            if (image.height, image.width) != size_hw:
                raise SourceError(
                    f"{uri}: is {size_words((image.height, image.width))}, but its image {size_words(size_hw)}"
                )
            if image.height * image.width > DEFAULT_LIMITS.max_image_pixels:
                raise SourceError(
                    f"{uri}: {size_words(size_hw)} are more than {DEFAULT_LIMITS.max_image_pixels:,} in all"
                )
            red, green, blue = (np.asarray(band, dtype=np.int32) for band in image.convert("RGB").split())
    except (UnidentifiedImageError, OSError, PILImage.DecompressionBombError) as error:
        raise SourceError(f"{uri}: not a readable PNG: {error}") from error
    ids: NDArray[np.int32] = red + 256 * green + 65536 * blue
    return ids


def _read_json(uri: str) -> Any:
    data = _read(uri)
    if data.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise SourceError(f"{uri}: compressed, which is not read here; unpack it")
    is_lines = uri.lower().endswith((".jsonl", ".ndjson"))
    try:
        return [load_json(line) for line in data.splitlines() if line.strip()] if is_lines else load_json(data)
    except ValueError as error:
        raise SourceError(
            f"{uri}: not JSON: {error}; a ground truth is a COCO file or a list of phrases, which may also have one a "
            "line in a file named .jsonl: docs/evaluation.md"
        ) from error


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
