"""COCO run-length encoding: converts between dense masks and the table's ``segmentation``.

Pixels are read column by column, and runs of zeros and ones are counted alternately, zeros first:

    mask (H=3, W=4)      read in this order      counts
      . # # .              0  3  6  9             zeros 3   . . .
      . # . .              1  4  7 10             ones  4   # # # #
      . # . #              2  5  8 11             zeros 4   . . . .
                                                  ones  1   #

COCO packs the counts 3 4 4 1 into ASCII, each as its difference from the count two places before it, five bits a
character, low bits first. The strings are byte for byte those of pycocotools. Decoding takes no more memory than the
mask itself, and strings from outside are not trusted: counts that do not fit their size raise an RleError.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools import mask as coco_mask

from pipelines.types import Rle

_FIRST_CHAR = 48
_MORE = 0x20  # a further character follows
_SIGN = 0x10
_MAX_CHARS = 7  # of one count: 35 bits, pycocotools' counts have 32
# pycocotools has room for six characters a count when it packs: 30 bits, one of them the sign.
MAX_PIXELS = 2**29 - 1


class RleError(ValueError):
    """A size and a string of counts do not form a valid mask; the message says why."""


def encode(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """Encode one mask.

    No memory layout is copied; a column-major mask (the transpose of a contiguous (W, H) array) is a little faster.

    Args:
        mask: bool or uint8 (H, W); any non-zero pixel counts as set.

    Returns:
        Its RLE, the same for every memory layout.

    Raises:
        ValueError: another dtype, not two dimensions, or no pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"a mask is (H, W) with at least one pixel, got shape {mask.shape}")
    if mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"a mask is bool or uint8, got {mask.dtype}")
    height, width = mask.shape
    # No bool view of uint8: bytes other than 0 and 1 are not valid bools.
    starts = _run_starts(np.not_equal(mask, 0) if mask.dtype == np.uint8 else mask.view(np.bool_))
    return _pack((height, width), np.diff(starts, append=mask.size))


def encode_window(inside: NDArray[np.bool_], top_left: tuple[int, int], size_hw: tuple[int, int]) -> Rle:
    """Encode a mask given as a window of it; all pixels outside the window are unset.

    Args:
        inside: bool (h, w), the window; may be empty.
        top_left: row and column of its first pixel in the mask.
        size_hw: height and width of the mask.

    Returns:
        The same RLE as of the whole mask.

    Raises:
        ValueError: the window does not lie in the mask, or is not bool (h, w).
    """
    if inside.ndim != 2 or inside.dtype != np.bool_:
        raise ValueError(f"a window is bool (h, w), got {inside.dtype} {inside.shape}")
    (top, left), (height, width), (rows, columns) = top_left, size_hw, inside.shape
    if min(height, width) < 1 or min(top, left) < 0 or top + rows > height or left + columns > width:
        raise ValueError(f"a window of {rows} x {columns} at {top_left} does not lie in a mask of {height} x {width}")
    # Each column is closed at its end (the extra row), so that its changes do not depend on the next column. Where a
    # run goes on in the next column, from_changes drops the end and the beginning again.
    is_change = np.zeros((rows + 1, columns), np.bool_)
    if rows:
        is_change[0], is_change[-1] = inside[0], inside[-1]
        np.not_equal(inside[1:], inside[:-1], out=is_change[1:-1])
    row, column = np.divmod(np.flatnonzero(is_change), max(columns, 1))
    return from_changes(np.sort((column + left) * height + row + top), size_hw)


def from_changes(changes: NDArray[np.int64], size_hw: tuple[int, int]) -> Rle:
    """Encode a mask given by the positions where its runs begin and end, counted column by column.

    Args:
        changes: int64, ascending. A position that occurs twice is the end of one run and the beginning of the next, as
            at the bottom of a column and the top of the next one; the two runs are joined.
        size_hw: height and width of the mask.

    Raises:
        ValueError: a position outside the mask.
    """
    num_pixels = size_hw[0] * size_hw[1]
    if len(changes) and not 0 <= changes[0] <= changes[-1] <= num_pixels:
        raise ValueError(f"changes from {changes[0]} to {changes[-1]} do not lie in a mask of {num_pixels} pixels")
    is_same = changes[1:] == changes[:-1]
    if is_same.any():
        is_doubled = np.zeros(len(changes) + 1, np.bool_)
        is_doubled[1:-1] = is_same
        changes = changes[~(is_doubled[1:] | is_doubled[:-1])]
    if len(changes) and changes[-1] == num_pixels:
        changes = changes[:-1]
    edges = np.empty(len(changes) + 2, np.int64)
    edges[0], edges[1:-1], edges[-1] = 0, changes, num_pixels
    return _pack(size_hw, edges[1:] - edges[:-1])


def encode_batch(masks_nhw: NDArray[np.bool_] | NDArray[np.uint8]) -> list[Rle]:
    """Encode masks, bool or uint8 (N, H, W), one after another, without copying the whole stack."""
    if masks_nhw.ndim != 3:
        raise ValueError(f"a batch of masks is (N, H, W), got shape {masks_nhw.shape}")
    return [encode(mask) for mask in masks_nhw]


def from_runs(size_hw: tuple[int, int], runs: ArrayLike) -> Rle:
    """Encode run lengths, zeros first (COCO's uncompressed ``counts``).

    Raises:
        ValueError: runs that are not integers, are negative or do not sum to H * W, or more than 536,870,911 pixels.
    """
    try:
        given = np.asarray(runs).reshape(-1)
        with np.errstate(invalid="ignore"):  # NaN is not equal to what becomes of it
            lengths = given.astype(np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"RLE runs are not integers of 64 bits: {error}") from error
    if not np.array_equal(given, lengths):
        raise ValueError("RLE runs are not integers of 64 bits")
    _check(size_hw, lengths)
    return _pack(size_hw, lengths)


def to_runs(rle: Rle) -> NDArray[np.int64]:
    """Return the run lengths of an RLE, int64 (R,), zeros first, checked to sum to H * W.

    Raises:
        RleError: a size that is not two positive integers, an invalid character, a truncated string, a negative run, or
            runs that do not cover the mask exactly.
    """
    codes = np.frombuffer(rle.counts.encode("utf-8"), np.uint8).astype(np.int64) - _FIRST_CHAR
    if codes.size == 0:
        raise RleError("RLE counts are empty")
    if codes.min() < 0 or codes.max() > 63:
        raise RleError(f"RLE counts hold a character outside '0' to 'o': {rle.counts[:40]!r}")
    is_last = (codes & _MORE) == 0
    if not is_last[-1]:
        raise RleError("RLE counts are cut short: the last character announces another")
    first = np.flatnonzero(np.concatenate(([True], is_last[:-1])))
    num_chars = np.diff(first, append=codes.size)
    if num_chars.max() > _MAX_CHARS:
        raise RleError("RLE counts hold a number of more than 35 bits")
    place = np.arange(codes.size) - np.repeat(first, num_chars)
    runs = np.add.reduceat((codes & 31) << (5 * place), first)
    # Counts are in two's complement, five bits to a character; the sign is the top bit of the last one.
    runs -= np.where(codes[is_last] & _SIGN, np.int64(1) << (5 * num_chars), 0)
    # Undo the differences to the count two before, from the fourth count on: zeros and ones each add up separately, but
    # the first count takes no part.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    _check(rle.size_hw, runs)
    return runs


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Decode to a bool (H, W) mask, Fortran-contiguous and writable.

    Raises:
        RleError: as ``to_runs``.
    """
    runs = to_runs(rle)
    height, width = rle.size_hw
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def scaled(rle: Rle, size_hw: tuple[int, int]) -> Rle:
    """Resize a mask by nearest neighbor, taken at pixel centers, without decoding it.

    Args:
        rle: a mask of any size.
        size_hw: height and width of the result, pixels.

    Raises:
        RleError: as ``to_runs``.
    """
    ends, (height, width) = np.cumsum(to_runs(rle)), rle.size_hw
    rows = ((np.arange(size_hw[0]) + 0.5) * height / size_hw[0]).astype(np.int64)
    columns = ((np.arange(size_hw[1]) + 0.5) * width / size_hw[1]).astype(np.int64)
    places = columns[:, None] * height + rows
    return encode((np.searchsorted(ends, places, side="right") % 2 == 1).T)


def area(rle: Rle) -> int:
    """Count the mask's pixels.

    Raises:
        RleError: as for ``to_runs``.
    """
    return int(to_runs(rle)[1::2].sum())


def bbox_xywh(rle: Rle) -> tuple[float, float, float, float]:
    """Return the COCO bounding box (x, y, w, h) of the mask in absolute pixels; all zeros for an empty mask.

    Raises:
        RleError: as ``to_runs``.
    """
    runs = to_runs(rle)
    height = rle.size_hw[0]
    ends = np.cumsum(runs)[1::2]
    starts = ends - runs[1::2]
    is_filled = ends > starts
    if not is_filled.any():
        return (0.0, 0.0, 0.0, 0.0)
    left, top = np.divmod(starts[is_filled], height)
    right, bottom = np.divmod(ends[is_filled] - 1, height)
    if (left < right).any():  # a run that continues in the next column touches the bottom and the top edge
        y0, y1 = 0, height - 1
    else:
        y0, y1 = int(top.min()), int(bottom.max())
    x0, x1 = int(left[0]), int(right[-1])
    return (float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1))


def iou(
    detections: Sequence[Rle], truths: Sequence[Rle], *, is_crowd: Sequence[bool] | None = None
) -> NDArray[np.float64]:
    """Return intersection over union of every detection with every truth, float64 (D, T) in [0, 1].

    Args:
        detections: masks of one image.
        truths: masks of the same image.
        is_crowd: for each truth, whether it is a crowd: then the detection's area replaces the union, as in COCO.

    Raises:
        ValueError: masks of different sizes, or as ``to_runs``.
    """
    sizes = {rle.size_hw for rle in (*detections, *truths)}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes have no IoU: {sorted(sizes)}")
    if not detections or not truths:
        return np.zeros((len(detections), len(truths)))
    crowd = [0] * len(truths) if is_crowd is None else [int(flag) for flag in is_crowd]
    found, wanted = ([canonical(rle).to_coco() for rle in side] for side in (detections, truths))
    return np.asarray(coco_mask.iou(found, wanted, crowd), dtype=np.float64)


def union(masks: Sequence[Rle]) -> Rle:
    """Return the pixels that any of the masks has.

    Raises:
        ValueError: no masks, masks of different sizes, or as ``to_runs``.
    """
    if len(sizes := {mask.size_hw for mask in masks}) != 1:
        raise ValueError(f"masks of one size have a union, got the sizes {sorted(sizes)}")
    whole = coco_mask.merge([canonical(mask).to_coco() for mask in masks])
    return canonical(Rle(size_hw=masks[0].size_hw, counts=whole["counts"].decode("ascii")))


def _run_starts(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return where runs begin in column-major order, the first run (of zeros, perhaps empty) at 0."""
    height, width = mask.shape
    if mask.flags.f_contiguous:
        flat = mask.T.reshape(-1)
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    else:
        # Row-major pixels: compare each row with the row above, and each column's top with the bottom of the column
        # before; then sort the few changes. Transposing the mask would cost more than the whole encoding.
        is_change = np.zeros((height, width), np.bool_)
        np.not_equal(mask[1:], mask[:-1], out=is_change[1:])
        np.not_equal(mask[0, 1:], mask[-1, :-1], out=is_change[0, 1:])
        row, column = np.divmod(np.flatnonzero(is_change), width)
        changes = np.sort(column * height + row)
    lead = [0, 0] if mask[0, 0] else [0]
    return np.concatenate((np.array(lead, np.int64), changes))


def _pack(size_hw: tuple[int, int], runs: NDArray[np.int64]) -> Rle:
    """Pack run lengths into COCO's string.

    Raises:
        ValueError: more than 536,870,911 pixels.
    """
    height, width = size_hw
    if height * width > MAX_PIXELS:
        raise ValueError(f"RLE of {height} x {width}: pycocotools cannot pack more than {MAX_PIXELS:,} pixels safely")
    packed = coco_mask.frPyObjects([{"size": [height, width], "counts": runs}], height, width)
    return Rle(size_hw=size_hw, counts=packed[0]["counts"].decode("ascii"))


def _check(size_hw: tuple[int, int], runs: NDArray[np.int64]) -> None:
    if len(size_hw) != 2 or not all(isinstance(side, int) and side > 0 for side in size_hw):
        raise RleError(f"RLE size must be two positive integers (H, W), got {size_hw!r}")
    if runs.size == 0 or runs.min() < 0:
        raise RleError("RLE counts hold a negative run" if runs.size else "RLE counts are empty")
    num_pixels = size_hw[0] * size_hw[1]
    if int(runs.sum()) != num_pixels:
        raise RleError(f"RLE runs cover {int(runs.sum())} pixels, but {size_hw[0]} x {size_hw[1]} is {num_pixels}")


def canonical(rle: Rle) -> Rle:
    """Return the RLE without empty runs inside it, which pycocotools' iou mistakes for the end of the mask."""
    runs = to_runs(rle)
    if (runs[1:] > 0).all():
        return rle
    # An empty run puts two changes at one position. An even number of them cancels out, an odd number is one change.
    places, counts = np.unique(np.cumsum(runs[:-1]), return_counts=True)
    return from_changes(places[counts % 2 == 1], rle.size_hw)
