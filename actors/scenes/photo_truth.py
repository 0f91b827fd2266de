"""Photographs with outlines drawn by hand, to test a model on: reads the COCO file and each photograph. No model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import SourceError
from pipelines.evaluation.coco_entries import read_mask
from pipelines.images.decode import DecodeError, decode_image
from pipelines.masks import rle
from pipelines.types import ImageRef

TRUTH = Path(__file__).resolve().parents[2] / "examples" / "photo_truth" / "instances.json"
DEFAULT_FOLDER = Path.home() / ".cache" / "xsam-label" / "photos"
"""Where `actors.scenes.fetch_photos` puts the packages' photographs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OutlinedObject:
    """One object of a photograph.

    Attributes:
        name: its category.
        mask: bool (H, W), what is to be seen of it.
        is_strict: whether it belongs to the stricter half: small, one of several, occluded or of low contrast.
    """

    name: str
    mask: NDArray[np.bool_]
    is_strict: bool

    @property
    def share(self) -> float:
        """Share of the picture that it covers, in (0, 1]."""
        return float(self.mask.mean())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Photo:
    """One photograph.

    Attributes:
        file_name: its name in the COCO file.
        pixels: uint8 (H, W, 3), upright RGB.
        objects: all outlined objects.
        exhaustive: names of which every object in the picture is outlined.
        shows: further names of the vocabulary that the picture shows, or might, and that must not count as absent.
    """

    file_name: str
    pixels: NDArray[np.uint8]
    objects: tuple[OutlinedObject, ...]
    exhaustive: tuple[str, ...]
    shows: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PhotoTruth:
    """The photographs that are there, with their outlines.

    Attributes:
        photos: the photographs.
        names: the vocabulary.
        num_missing: how many photographs of the file have not been fetched.
    """

    photos: tuple[Photo, ...]
    names: tuple[str, ...]
    num_missing: int


def read_photo_truth(truth: Path = TRUTH, folder: Path = DEFAULT_FOLDER) -> PhotoTruth:
    """Read the truth, and those of its photographs that are there.

    Args:
        truth: COCO file of instances. Paths of photographs that it brings along are relative to its folder.
        folder: folder with the photographs of packages.

    Raises:
        SourceError: the file or a photograph cannot be read, or a photograph is not the one that was outlined.
    """
    document = read_document(truth)
    names = {entry["id"]: str(entry["name"]) for entry in document["categories"]}
    entries: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in document["annotations"]:
        entries.setdefault(annotation["image_id"], []).append(annotation)
    photos, num_missing = [], 0
    for image in document["images"]:
        path = photo_path(image, truth, folder)
        if path.exists():
            photos.append(_photo(image, path, entries.get(image["id"], []), names))
        else:
            num_missing += 1
    return PhotoTruth(photos=tuple(photos), names=tuple(names.values()), num_missing=num_missing)


def read_document(truth: Path) -> dict[str, Any]:
    """Read the COCO file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        document = json.loads(truth.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{truth} is no COCO file of instances: {str(error)[:150]}") from error
    if not isinstance(document, dict) or not {"images", "categories", "annotations"} <= document.keys():
        raise SourceError(f"{truth} is no COCO file of instances: it has no images, categories and annotations")
    return dict(document)


def photo_path(image: Mapping[str, Any], truth: Path, folder: Path) -> Path:
    """Return where a photograph lies: beside the truth, or, if a package brings it, in the folder of fetched ones."""
    if "package" in image:
        return folder / str(image["package"]).replace(":", "-").replace("/", "-") / str(image["member"])
    return truth.parent / str(image["path"])


def _photo(
    image: Mapping[str, Any], path: Path, entries: Sequence[Mapping[str, Any]], names: Mapping[int, str]
) -> Photo:
    size_hw = image["height"], image["width"]
    objects = tuple(
        OutlinedObject(
            name=names[entry["category_id"]],
            mask=rle.decode(read_mask(entry["segmentation"], size_hw)),
            is_strict=bool(entry["strict"]),
        )
        for entry in entries
    )
    return Photo(
        file_name=image["file_name"],
        pixels=_pixels(path, image["sha256"], size_hw),
        objects=objects,
        exhaustive=tuple(image["exhaustive"]),
        shows=frozenset(image["shows"]),
    )


def _pixels(path: Path, sha256: str, size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a photograph upright, at the size at which it was outlined."""
    try:
        image = decode_image(path.read_bytes(), ImageRef(image_id=path.name, uri=str(path)))
    except (OSError, DecodeError) as error:
        raise SourceError(f"photograph {path} cannot be read: {error}") from error
    if image.content_sha256 != sha256:
        raise SourceError(f"photograph {path} is not the one that was outlined (its SHA-256 differs): fetch it again")
    if image.pixels.shape[:2] == size_hw:
        return image.pixels
    return np.asarray(Image.fromarray(image.pixels).resize(size_hw[::-1], Image.Resampling.LANCZOS))
