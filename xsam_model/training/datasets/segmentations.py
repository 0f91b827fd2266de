"""Segmentations of annotation files: COCO polygons and run lengths, validated when read, rasterised when drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from xsam_model.training.datasets.records import MALFORMED, OTHER_SIZE, RecordError

# Beyond any image, but far below the coordinates for which pycocotools would allocate without bounds.
_MAX_COORDINATE = 100_000
_MAX_PIXELS = 2**31 - 1
# COCO's text of run lengths: characters from "0" on carry five bits, a flag for more to come, and in the last a sign.
_FIRST_CHAR, _MORE, _SIGN, _MAX_CHARS = 48, 32, 16, 7


@dataclass(frozen=True, slots=True, eq=False)
class Segmentation:
    """A mask in compact form, as the union of its parts.

    Attributes:
        polygons: float64 (2 n,) each, x and y of the vertices in turn, absolute pixels.
        runs: COCO's compressed run lengths, validated against their size.
        size_hw: (height, width) of the runs; None if there are only polygons.
    """

    polygons: tuple[NDArray[np.float64], ...] = ()
    runs: tuple[bytes, ...] = ()
    size_hw: tuple[int, int] | None = None

    def mask(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Rasterise the mask with pycocotools.

        Args:
            size_hw: (height, width) of the image.

        Returns:
            bool (H, W); empty if all polygons lie outside the image.

        Raises:
            RecordError: if the runs have another size.
        """
        if self.size_hw not in (None, tuple(size_hw)):
            raise RecordError(OTHER_SIZE, f"a mask of (height, width) {self.size_hw} for an image of {size_hw}")
        parts = [{"size": list(size_hw), "counts": counts} for counts in self.runs]
        if self.polygons:
            parts += coco_mask.frPyObjects(list(self.polygons), *size_hw)
        whole = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
        return np.asarray(coco_mask.decode(whole), dtype=np.bool_)


def read_segmentation(value: Any, size_hw: tuple[int, int] | None = None) -> Segmentation:
    """Read a COCO `segmentation` field.

    Args:
        value: a list of polygons, each a flat list of x and y; run lengths, `{"size": [h, w], "counts": ...}` with
            counts compressed (text or bytes) or as a list; or a list of such run lengths.
        size_hw: (height, width) of the image, which run lengths must have; None if unknown.

    Raises:
        RecordError: if it is none of these, a polygon has fewer than three vertices or coordinates that are not finite
            or beyond any image, or the runs do not add up to their size.
    """
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list) or not parts:
        raise RecordError(MALFORMED, f"no polygons and no run lengths: {str(value)[:80]}")
    runs = [_read_runs(part) for part in parts if isinstance(part, dict)]
    polygons = tuple(_read_polygon(part) for part in parts if not isinstance(part, dict))
    sizes = {size for size, _ in runs}
    if len(sizes) > 1 or (size_hw is not None and sizes - {tuple(size_hw)}):
        raise RecordError(OTHER_SIZE, f"run lengths of (height, width) {sorted(sizes)} for an image of {size_hw}")
    return Segmentation(polygons, tuple(counts for _, counts in runs), next(iter(sizes), None))


def read_box(box: Any) -> Segmentation:
    """Read a COCO box (x, y, width, height) as a polygon.

    Raises:
        RecordError: if it is not a box, or has no area.
    """
    try:
        x, y, width, height = (float(number) for number in box)
    except (TypeError, ValueError) as error:
        raise RecordError(MALFORMED, f"no box: {box!r}") from error
    if not (width > 0 and height > 0):
        raise RecordError(MALFORMED, f"a box without area: {box!r}")
    return Segmentation((_read_polygon([x, y, x + width, y, x + width, y + height, x, y + height]),))


def rasterize(segmentations: Sequence[Segmentation], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the masks of an image, bool (N, H, W); N may be 0.

    Raises:
        RecordError: if one has another size.
    """
    masks = [one.mask(size_hw) for one in segmentations]
    return np.stack(masks) if masks else np.zeros((0, *size_hw), dtype=np.bool_)


def ignored_pixels(ignored: Sequence[Segmentation], masks: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return the pixels to ignore that no ground-truth mask covers, bool (H, W); None if nothing is ignored."""
    if not ignored:
        return None
    size = masks.shape[1:]
    return np.any([one.mask(size) for one in ignored], axis=0) & ~masks.any(0)


def _read_polygon(numbers: Any) -> NDArray[np.float64]:
    try:
        polygon = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RecordError(MALFORMED, f"no polygon: {str(numbers)[:80]}") from error
    if polygon.ndim != 1 or polygon.size < 6 or polygon.size % 2:
        raise RecordError(MALFORMED, f"a polygon needs x and y of three or more vertices: {str(numbers)[:80]}")
    # NaN fails this comparison too.
    if not (np.abs(polygon) <= _MAX_COORDINATE).all():
        raise RecordError(MALFORMED, f"a polygon with coordinates beyond any image: {str(numbers)[:80]}")
    return polygon


def _read_runs(value: Mapping[str, Any]) -> tuple[tuple[int, int], bytes]:
    """Return size and compressed counts of run lengths, after checking that they add up to the size."""
    try:
        height, width = (int(side) for side in value["size"])
        counts = value["counts"]
        if isinstance(counts, Sequence) and not isinstance(counts, str | bytes):
            lengths = np.asarray(counts, dtype=np.int64)
        else:
            counts = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
            lengths = _lengths(counts)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(MALFORMED, f"no run lengths: {error}") from error
    if min(height, width) < 1 or height * width > _MAX_PIXELS or lengths.ndim != 1 or (lengths < 0).any():
        raise RecordError(MALFORMED, f"run lengths with a size of {height} x {width}, or negative ones")
    if int(lengths.sum()) != height * width:
        raise RecordError(MALFORMED, f"runs cover {int(lengths.sum())} pixels of {height} x {width}")
    if not isinstance(counts, bytes):
        packed = coco_mask.frPyObjects({"size": [height, width], "counts": lengths.tolist()}, height, width)
        counts = packed["counts"]
    return (height, width), counts


def _lengths(counts: bytes) -> NDArray[np.int64]:
    """Decode COCO's text of run lengths: five bits a character, low bits first, as differences two places apart.

    Decoded here to validate it: pycocotools reads beyond the end of a broken text, and leaves pixels that the runs do
    not cover uninitialized. `pipelines.masks` decodes the same text for tables; this package can be published alone, so
    neither imports the other.

    Raises:
        ValueError: if it is not such a text.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - _FIRST_CHAR
    if not codes.size or codes.min() < 0 or codes.max() > 2 * _MORE - 1 or codes[-1] & _MORE:
        raise ValueError("characters that are none of COCO's, or the last one missing")
    starts = np.flatnonzero(np.concatenate(([True], (codes[:-1] & _MORE) == 0)))
    sizes = np.diff(starts, append=codes.size)
    if sizes.max() > _MAX_CHARS:
        raise ValueError("a number of more than 35 bits")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, sizes))
    numbers = np.add.reduceat((codes & (_MORE - 1)) << shifts, starts)
    numbers -= np.where(codes[starts + sizes - 1] & _SIGN, np.int64(1) << (5 * sizes), 0)
    # The first three numbers are lengths, every later one the difference from the length two places before.
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers
