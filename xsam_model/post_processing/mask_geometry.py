"""Maps mask logits from the mask encoder's canvas back to the original image, in bounded memory.

Owns the two bilinear resizes, and bounds how much is upsampled at once: single masks only in the window where they can
be, maps of all masks in chunks. Scores and labels are up to `instances` and `maps`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Logits upsampled at once, float32: 2**25 take 128 MiB, and about three times that at the peak.
MAX_CHUNK_PIXELS = 2**25
# Logits upsampled at once in the window of one mask, on a CPU: so few that they stay in its cache from step to step.
_BLOCK_PIXELS = 2**16
# Limit of the cached resize weights: those of one image side take 4 bytes x its pixels x the decoder's cells.
MAX_KEPT_BYTES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class WindowedMask:
    """A mask in the window of its image outside which it has no pixels.

    Attributes:
        query: query that predicted it.
        top, left: row and column of the window's first pixel in the image.
        inside: bool (h, w), the mask in its window; (0, 0) if it can have no pixels.
        score: float32 scalar in [0, 1], on the CPU: mean mask probability inside the mask, 0 for an empty mask.
        companions: the masks that were upsampled together with this one, if any were.
        place: position of this mask among them.
    """

    query: int
    top: int
    left: int
    inside: Tensor
    score: Tensor
    companions: _WholeMasks | None = None
    place: int = 0

    def changes(self, height: int) -> Tensor:
        """Return where runs of the mask start and end, column by column in an image of this height, as RLE needs it.

        Companions are computed at once on their device, so that only these positions are copied from a GPU to the host
        and no pixels.

        Returns:
            (n,) int64 on the CPU, ascending, column-major positions in the image, starts and ends in turn. A run ends
            at the bottom of its column even if the mask continues at the top of the next, where the same position is
            then also a start.
        """
        if self.companions is not None:
            return self.companions.changes[self.place]
        columns = self.inside.T.cpu().numpy()
        width, rows = columns.shape
        # A column of n pixels has n + 1 places for a change: above the first, between any two, below the last.
        is_change = np.zeros((width, rows + 1), np.bool_)
        if rows:
            is_change[:, 0], is_change[:, -1] = columns[:, 0], columns[:, -1]
            np.not_equal(columns[:, 1:], columns[:, :-1], out=is_change[:, 1:-1])
        places = np.flatnonzero(is_change)
        places += places // (rows + 1) * (height - rows - 1) + (self.left * height + self.top)
        return torch.from_numpy(places)

    def paste(self, mask: Tensor) -> None:
        """Set this mask's pixels in a (H, W) bool mask of the whole image."""
        height, width = self.inside.shape
        mask[self.top : self.top + height, self.left : self.left + width] |= self.inside


@dataclass(frozen=True, eq=False)
class _WholeMasks:
    """Masks of one image at full size, bool (n, H, W)."""

    inside: Tensor

    @cached_property
    def changes(self) -> tuple[Tensor, ...]:
        """The results of `WindowedMask.changes` for all masks, computed in one step and copied to the host in one."""
        count, height, width = self.inside.shape
        columns = F.pad(self.inside.transpose(1, 2).to(torch.uint8), (1, 1))
        places = _where((columns[..., 1:] != columns[..., :-1]).flatten())
        # A column of H pixels has H + 1 places for a change: above the first, between any two, below the last.
        places_of_a_mask = width * (height + 1)
        counts = (places // places_of_a_mask).bincount(minlength=count)
        places = places % places_of_a_mask
        # Counts and positions in one tensor, because every copy waits for the device.
        found = torch.cat([counts, places - places // (height + 1)]).cpu()
        return found[count:].split(found[:count].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGeometry:
    """Position of an image on the mask encoder's canvas.

    Attributes:
        canvas_size: side of the square canvas in pixels.
        scaled_size: (height, width) of the image on the canvas, from its top left corner; the rest is padding.
        original_size: (height, width) of the image itself.
    """

    canvas_size: int
    scaled_size: tuple[int, int]
    original_size: tuple[int, int]

    def enlarge(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) logits of the decoder -> (N, H, W) float32 logits on the original image.

        Resizes twice, to the canvas and from its used part to the image, as the reference implementation does; a single
        resize would move the outlines.
        """
        return self.enlarge_to_image(self.enlarge_to_canvas(mask_logits))

    def enlarge_to_canvas(self, values: Tensor) -> Tensor:
        """(N, h, w) values at decoder resolution -> (N, *scaled_size) float32, the canvas without its padding."""
        side = (self.canvas_size, self.canvas_size)
        canvas = F.interpolate(values[None].float(), side, mode="bilinear", align_corners=False)[0]
        return canvas[:, : self.scaled_size[0], : self.scaled_size[1]]

    def enlarge_to_image(self, values: Tensor) -> Tensor:
        """(N, *scaled_size) values on the used part of the canvas -> (N, *original_size)."""
        return F.interpolate(values[None], self.original_size, mode="bilinear", align_corners=False)[0]

    def restore_mask(self, mask: Tensor) -> Tensor:
        """(S, S) mask on the whole canvas, as visual prompts are -> (H, W) bool on the image, by nearest neighbor."""
        used = mask[None, None, : self.scaled_size[0], : self.scaled_size[1]].float()
        return F.interpolate(used, self.original_size, mode="nearest")[0, 0] > 0

    def iter_enlarged(
        self, mask_logits: Tensor, queries: Tensor | Sequence[int], max_chunk_pixels: int = MAX_CHUNK_PIXELS
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of queries (n,) in the given order with their upsampled logits (n, H, W) float32.

        Args:
            mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
            queries: which to upsample.
            max_chunk_pixels: most pixels to hold at once; at least one mask is held.
        """
        # Each mask exists on the canvas and on the image, whichever is larger.
        pixels = max(self.original_size[0] * self.original_size[1], self.canvas_size**2)
        chosen = torch.as_tensor(queries, dtype=torch.long, device=mask_logits.device)
        # Splitting nothing would still yield one chunk, of nothing.
        for chunk in chosen.split(max(1, max_chunk_pixels // pixels)) if len(chosen) else ():
            yield chunk, self.enlarge(mask_logits[chunk])

    def iter_masks(self, mask_logits: Tensor, queries: Sequence[int]) -> Iterator[WindowedMask]:
        """Yield the masks of queries in the given order: the pixels whose upsampled logit is positive.

        Args:
            mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
            queries: which masks to yield.
        """
        if not len(queries):
            return iter(())
        # A GPU upsamples many whole masks faster than the host can tell it the window of each.
        is_host = mask_logits.device.type == "cpu"
        return self.iter_windowed(mask_logits, queries) if is_host else self.iter_whole(mask_logits, queries)

    def iter_windowed(self, mask_logits: Tensor, queries: Sequence[int]) -> Iterator[WindowedMask]:
        """Yield masks one by one, each in its window; arguments as for `iter_masks`.

        An upsampled logit is a weighted mean of the cells around it, so a mask never reaches far beyond its positive
        cells. Only that window is upsampled, with the weights of both resizes multiplied into one. The masks lie in
        memory column by column, in which order RLE reads them.
        """
        chosen = mask_logits.detach()[torch.as_tensor(queries, device=mask_logits.device)].float()
        rows, columns = (
            _KEPT.get(cells, self.canvas_size, used, pixels, chosen.device)
            for cells, used, pixels in zip(chosen.shape[1:], self.scaled_size, self.original_size, strict=True)
        )
        tops, bottoms = _reach(np.greater(chosen.cpu().numpy(), 0))
        for query, logits, top, bottom in zip(queries, chosen, tops.tolist(), bottoms.tolist(), strict=True):
            marked = [cell for cell, low in enumerate(bottom) if low >= 0] or [0]
            down, right = rows.window(min(top), max(bottom)), columns.window(marked[0], marked[-1])
            inside, score = _enlarge_in_blocks(logits, (top, bottom), (rows, down), (columns, right))
            yield WindowedMask(query, down.pixels.start, right.pixels.start, inside, score)
            del inside

    def iter_whole(
        self, mask_logits: Tensor, queries: Sequence[int], max_chunk_pixels: int = MAX_CHUNK_PIXELS
    ) -> Iterator[WindowedMask]:
        """Yield masks upsampled together, each in a window of the whole image; arguments as for `iter_enlarged`.

        Needs few kernels for many masks, and waits for the device once for all scores of a chunk.
        """
        rest = iter(queries)
        for _, enlarged in self.iter_enlarged(mask_logits, queries, max_chunk_pixels):
            inside = enlarged > 0
            # The 1e-6 is the reference implementation's: an empty mask scores 0.
            scores = _probabilities(enlarged).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
            del enlarged
            together = _WholeMasks(inside)
            for place, (query, score) in enumerate(zip(islice(rest, len(inside)), scores.cpu(), strict=True)):
                yield WindowedMask(query, 0, 0, inside[place], score, together, place)
            del inside, together


def _reach(is_positive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Masks (n, h, w) -> their first and last row in each column, (n, w) each; h and -1 where a column has none."""
    height, is_any = is_positive.shape[1], is_positive.any(1)
    last = height - 1 - is_positive[:, ::-1].argmax(1)
    return np.where(is_any, is_positive.argmax(1), height), np.where(is_any, last, -1)


def _enlarge_in_blocks(
    logits: Tensor,
    reach: tuple[list[int], list[int]],
    down: tuple[_Enlarging, _Window],
    right: tuple[_Enlarging, _Window],
) -> tuple[Tensor, Tensor]:
    """Enlarge one mask in its window, a few columns at a time, on a CPU.

    Args:
        logits: (h, w) of the decoder.
        reach: the first and the last row that is positive in each of its columns, as from `_reach`.
        down, right: weights of rows and of columns, and the window of each.

    Returns:
        The mask in its window, bool (H, W), column by column in memory; and its score.
    """
    (tops, bottoms), (rows, tall), (columns, wide) = reach, down, right
    top, left, first_cell = tall.pixels.start, wide.pixels.start, wide.cells.start
    height, width = tall.pixels.stop - top, wide.pixels.stop - left
    # By rows first, for all cells of a row, then along them.
    by_cell = (rows.weights[tall.pixels, tall.cells] @ logits[tall.cells, wide.cells]).T.contiguous()
    inside, total, room = np.zeros((width, height), np.bool_), 0.0, logits.new_empty(max(_BLOCK_PIXELS, height))
    step = max(1, _BLOCK_PIXELS // max(height, 1))
    for start in range(0, width if height else 0, step):
        stop = min(start + step, width)
        # Few cells have a weight in these columns, and they may be positive in few rows.
        low, high = int(columns.first[left + start]), int(columns.last[left + stop - 1]) + 1
        some = rows.window(min(tops[low:high]), max(bottoms[low:high])).pixels
        if some.start < some.stop:
            some = slice(some.start - top, some.stop - top)
            weights = columns.weights[left + start : left + stop, low:high]
            block = room[: (stop - start) * (some.stop - some.start)].view(stop - start, -1)
            enlarged = torch.mm(weights, by_cell[low - first_cell : high - first_cell, some], out=block)
            # NumPy compares several times as fast as torch.
            np.greater(enlarged.numpy(), 0, out=inside[start:stop, some])
            total += _probabilities(enlarged).sum().item()
    # The 1e-6 is the reference implementation's: an empty mask scores 0.
    score = logits.new_tensor(total / (np.count_nonzero(inside) + 1e-6))
    return torch.from_numpy(inside).T, score


def _where(flags: Tensor) -> Tensor:
    """Return the positions (n,) of the set flags (N,); on a CPU by NumPy, which is several times as fast as torch."""
    on_host = flags.device.type == "cpu"
    return torch.from_numpy(np.flatnonzero(flags.numpy())) if on_host else flags.nonzero()[:, 0]


def _probabilities(enlarged: Tensor) -> Tensor:
    """Logits -> probabilities inside the mask, 0 outside, in their place; faster than gathering those inside."""
    return torch.threshold_(enlarged, 0.0, -torch.inf).sigmoid_()


def check_finite(class_logits: Tensor, mask_logits: Tensor) -> None:
    """Raise FloatingPointError if a logit is not finite, which would make the masks meaningless."""
    # Of all logits the least and the greatest: NaN is both.
    ends = [end for logits in (class_logits, mask_logits) if logits.numel() for end in logits.aminmax()]
    if ends and not torch.stack(ends).isfinite().all():
        raise FloatingPointError("class or mask logits are not finite")


def class_probabilities(class_logits: Tensor, num_conditions: int | None = None) -> Tensor:
    """(Q, K + 1) logits, background last -> (Q, num_conditions) float32 probabilities of the real conditions."""
    if num_conditions is not None:
        # Padding is removed before the softmax, so that probabilities in a batch round as for the image alone.
        class_logits = torch.cat([class_logits[:, :num_conditions], class_logits[:, -1:]], dim=1)
    return class_logits.float().softmax(-1)[:, :-1]


@dataclass(frozen=True, slots=True)
class _Window:
    """A range of pixels along one image side, and the decoder cells that they are interpolated from."""

    pixels: slice
    cells: slice


@dataclass(frozen=True, slots=True, eq=False)
class _Enlarging:
    """Both resizes combined along one image side, as weights from decoder cells to image pixels.

    Attributes:
        weights: float32 (pixels, cells), weight of each cell in each pixel.
        first, last: int64 (pixels,), first and last cell with a weight in the pixel; both are non-decreasing.
    """

    weights: Tensor
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        """Memory of the arrays."""
        return self.weights.nbytes + self.first.nbytes + self.last.nbytes

    def window(self, low: int, high: int) -> _Window:
        """Return the range of pixels that depend on any cell from `low` up to and including `high`."""
        if low <= high:
            start, stop = int(self.last.searchsorted(low, "left")), int(self.first.searchsorted(high, "right"))
            # Empty if all of the cells are in the padding of the canvas, which no pixel depends on.
            if start < stop:
                return _Window(slice(start, stop), slice(int(self.first[start]), int(self.last[stop - 1]) + 1))
        return _Window(slice(0, 0), slice(0, 0))


class _KeptEnlargings:
    """A thread-safe LRU cache of resize weights, limited in bytes. It pays because images of one size come together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, int, int, int, torch.device], _Enlarging] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, cells: int, canvas: int, used: int, pixels: int, device: torch.device) -> _Enlarging:
        """Return the weights for these sizes; see `_enlarging`."""
        key = (cells, canvas, used, pixels, device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        # Outside the lock: two threads may both compute the same weights, but none waits for the other.
        made = _enlarging(*key)
        with self._lock:
            self._kept[key] = made
            while self.num_bytes > self._max_bytes:
                self._kept.popitem(last=False)
        return made

    @property
    def num_bytes(self) -> int:
        """Memory of all cached weights."""
        return sum(one.num_bytes for one in self._kept.values())


def _enlarging(cells: int, canvas: int, used: int, pixels: int, device: torch.device) -> _Enlarging:
    """Combine the resize from `cells` to the canvas with the one from its `used` part to the image's pixels."""
    low, high, share = _bilinear(cells, canvas)
    below, above, part = _bilinear(used, pixels)
    of_canvas = torch.zeros(canvas, cells)
    places = torch.arange(canvas)
    of_canvas[places, low] += 1 - share
    of_canvas[places, high] += share
    weights = (1 - part)[:, None] * of_canvas[below] + part[:, None] * of_canvas[above]
    return _Enlarging(weights.to(device), low[below].numpy(), high[above].numpy())


_KEPT = _KeptEnlargings(MAX_KEPT_BYTES)


def _bilinear(size: int, new_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source positions around each target position, and its distance from the first.

    Computed in float32 as in torch's bilinear `interpolate` with align_corners=False.
    """
    centers = (torch.arange(new_size, dtype=torch.float32) + 0.5) * torch.tensor(size / new_size) - 0.5
    centers.clamp_(min=0)
    low = centers.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), centers - low
