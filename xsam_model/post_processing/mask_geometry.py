"""Where an image lies on the mask encoder's canvas, and the way back: logits to masks of the image's size.

Owns the two resizes, and that little is enlarged at once: a mask only where it can be, maps of all masks in chunks.
What masks mean is in the `post_processing` modules.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# Float pixels enlarged together: 2**25 are 128 MiB of logits, and about three times that at the peak.
MAX_CHUNK_PIXELS = 2**25
# Of the weights that enlarge masks: of one side of an image 4 bytes for each of its pixels and each cell of the canvas.
MAX_KEPT_BYTES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class WindowedMask:
    """A mask in the part of its image where it can be.

    Attributes:
        query: that made it.
        top, left: row and column of the window's first pixel in the image.
        inside: bool (h, w), the mask in its window; no pixel outside belongs to it. (0, 0) where no pixel can.
        score: float32 scalar in [0, 1], on the CPU: mean mask probability inside the mask, 0 for an empty mask.
        companions: the masks that were enlarged together with this one, where that is how it was made.
        place: of this mask among them.
    """

    query: int
    top: int
    left: int
    inside: Tensor
    score: Tensor
    companions: _WholeMasks | None = None
    place: int = 0

    def changes(self, height: int) -> Tensor:
        """Return where the mask begins and ends, reading the image of this height column by column: all that RLE needs.

        Found where the mask is, so that of a mask on a GPU its few changes are copied to the host, and no pixel; and
        for all its companions at once.

        Returns:
            (n,) int64 on the CPU, rising, positions in the image. One that occurs twice is no change: the mask ends at
            the bottom of a column and goes on at the top of the next.
        """
        if self.companions is not None:
            return self.companions.changes[self.place]
        columns = F.pad(self.inside.T.to(torch.uint8), (1, 1))
        column, row = (columns[:, 1:] != columns[:, :-1]).nonzero(as_tuple=True)
        return ((column + self.left) * height + row + self.top).cpu()

    def paste(self, mask: Tensor) -> None:
        """Set the pixels of a (H, W) bool mask of the image that belong to this one."""
        height, width = self.inside.shape
        mask[self.top : self.top + height, self.left : self.left + width] |= self.inside


@dataclass(frozen=True, eq=False)
class _WholeMasks:
    """Masks of one image, bool (n, H, W)."""

    inside: Tensor

    @cached_property
    def changes(self) -> tuple[Tensor, ...]:
        """What `WindowedMask.changes` returns, of each mask: found in one step, and copied to the host in one."""
        count, height, width = self.inside.shape
        columns = F.pad(self.inside.transpose(1, 2).to(torch.uint8), (1, 1))
        places = (columns[..., 1:] != columns[..., :-1]).flatten().nonzero()[:, 0]
        # A column has one place more than pixels: above the first, between any two, below the last.
        places_of_a_mask = width * (height + 1)
        counts = (places // places_of_a_mask).bincount(minlength=count)
        places = places % places_of_a_mask
        found = torch.cat([counts, places - places // (height + 1)]).cpu()
        return found[count:].split(found[:count].tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGeometry:
    """Where an image lies on the mask encoder's canvas: sizes are (height, width) in pixels."""

    canvas_size: int
    scaled_size: tuple[int, int]
    original_size: tuple[int, int]

    def enlarge(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) logits on the reduced canvas -> (N, H, W) float32 logits on the original image.

        The two resizes, to the canvas and from its used part to the image, are those that the network was trained
        with; one resize would move the outline.
        """
        return self.enlarge_to_image(self.enlarge_to_canvas(mask_logits))

    def enlarge_to_canvas(self, values: Tensor) -> Tensor:
        """(N, h, w) values on the reduced canvas -> (N, *scaled_size) float32, the canvas without its padding."""
        side = (self.canvas_size, self.canvas_size)
        canvas = F.interpolate(values[None].float(), side, mode="bilinear", align_corners=False)[0]
        return canvas[:, : self.scaled_size[0], : self.scaled_size[1]]

    def enlarge_to_image(self, values: Tensor) -> Tensor:
        """(N, *scaled_size) values on the used part of the canvas -> (N, *original_size)."""
        return F.interpolate(values[None], self.original_size, mode="bilinear", align_corners=False)[0]

    def restore_mask(self, mask: Tensor) -> Tensor:
        """(S, S) mask on the whole canvas, as the model reads visual prompts -> (H, W) bool on the image, nearest."""
        used = mask[None, None, : self.scaled_size[0], : self.scaled_size[1]].float()
        return F.interpolate(used, self.original_size, mode="nearest")[0, 0] > 0

    def iter_enlarged(
        self, mask_logits: Tensor, queries: Tensor | Sequence[int], max_chunk_pixels: int = MAX_CHUNK_PIXELS
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of queries (n,) in the given order with their enlarged logits (n, H, W) float32.

        Args:
            mask_logits: (Q, h, w) on the reduced canvas.
            queries: which to enlarge.
            max_chunk_pixels: pixels to hold at once; at least one mask is.
        """
        pixels = max(self.original_size[0] * self.original_size[1], self.canvas_size**2)
        chosen = torch.as_tensor(queries, dtype=torch.long, device=mask_logits.device)
        # Splitting nothing would still yield one chunk, of nothing.
        for chunk in chosen.split(max(1, max_chunk_pixels // pixels)) if len(chosen) else ():
            yield chunk, self.enlarge(mask_logits[chunk])

    def iter_masks(self, mask_logits: Tensor, queries: Sequence[int]) -> Iterator[WindowedMask]:
        """Yield the masks of queries in the given order: pixels whose enlarged logit is positive.

        Args:
            mask_logits: (Q, h, w) on the reduced canvas.
            queries: which masks.
        """
        if not len(queries):
            return iter(())
        # An accelerator enlarges many masks sooner than it is told of their windows one by one.
        is_host = mask_logits.device.type == "cpu"
        return self.iter_windowed(mask_logits, queries) if is_host else self.iter_whole(mask_logits, queries)

    def iter_windowed(self, mask_logits: Tensor, queries: Sequence[int]) -> Iterator[WindowedMask]:
        """Yield masks one by one, each in its window; arguments as for `iter_masks`.

        An enlarged logit is a mean of the cells around it, weighted, so that a mask is never far from its positive
        cells. Only there are logits enlarged, by both resizes at once.
        """
        chosen = mask_logits[torch.as_tensor(queries, device=mask_logits.device)].float()
        in_rows, in_columns = ((chosen > 0).any(side).cpu().numpy() for side in (2, 1))
        rows, columns = (
            _KEPT.get(cells, self.canvas_size, used, pixels, chosen.device)
            for cells, used, pixels in zip(chosen.shape[1:], self.scaled_size, self.original_size, strict=True)
        )
        for query, logits, of_rows, of_columns in zip(queries, chosen, in_rows, in_columns, strict=True):
            down, right = rows.window(of_rows), columns.window(of_columns)
            weights, across = rows.weights[down.pixels, down.cells], columns.weights[right.pixels, right.cells]
            enlarged = weights @ logits[down.cells, right.cells] @ across.T
            inside = enlarged > 0
            score = _probabilities(enlarged).sum() / (inside.count_nonzero() + 1e-6)
            del enlarged  # or it would be held while the caller reads this mask
            yield WindowedMask(query, down.pixels.start, right.pixels.start, inside, score.cpu())
            del inside

    def iter_whole(
        self, mask_logits: Tensor, queries: Sequence[int], max_chunk_pixels: int = MAX_CHUNK_PIXELS
    ) -> Iterator[WindowedMask]:
        """Yield masks that were enlarged together, the whole image being the window; arguments as for `iter_enlarged`.

        Few steps on the device for many masks, and for all of them one wait for their scores.
        """
        rest = iter(queries)
        for _, enlarged in self.iter_enlarged(mask_logits, queries, max_chunk_pixels):
            inside = enlarged > 0
            scores = _probabilities(enlarged).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
            del enlarged
            together = _WholeMasks(inside)
            for place, (query, score) in enumerate(zip(islice(rest, len(inside)), scores.cpu(), strict=True)):
                yield WindowedMask(query, 0, 0, inside[place], score, together, place)
            del inside, together


def _probabilities(enlarged: Tensor) -> Tensor:
    """Logits -> probabilities inside the mask, 0 outside: quicker than to collect those inside."""
    return F.threshold(enlarged, 0.0, -torch.inf).sigmoid_()


def check_finite(class_logits: Tensor, mask_logits: Tensor) -> None:
    """Raise FloatingPointError if a logit is not finite: the masks would mean nothing."""
    if not (torch.isfinite(class_logits).all() and torch.isfinite(mask_logits).all()):
        raise FloatingPointError("class or mask logits are not finite")


def class_probabilities(class_logits: Tensor, num_conditions: int | None = None) -> Tensor:
    """(Q, K + 1) logits, background last -> (Q, num_conditions) float32 probabilities of the real conditions."""
    if num_conditions is not None:
        # Padding takes no part, so that a batch rounds as its images do alone.
        class_logits = torch.cat([class_logits[:, :num_conditions], class_logits[:, -1:]], dim=1)
    return class_logits.float().softmax(-1)[:, :-1]


@dataclass(frozen=True, slots=True)
class _Window:
    """Pixels of one side of the image, and the cells that they are made of."""

    pixels: slice
    cells: slice


@dataclass(frozen=True, slots=True, eq=False)
class _Enlarging:
    """How cells of the reduced canvas become pixels of the image, along one side.

    Attributes:
        weights: float32 (pixels, cells): what each pixel takes of each cell.
        first, last: int64 (pixels,), the first and the last cell that a pixel takes of; neither ever falls.
    """

    weights: Tensor
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def num_bytes(self) -> int:
        """What it holds."""
        return self.weights.nbytes + self.first.nbytes + self.last.nbytes

    def window(self, is_positive: NDArray[np.bool_]) -> _Window:
        """Return the pixels that take of a cell between the first and the last of those that are marked."""
        marked = np.flatnonzero(is_positive)
        if len(marked):
            start, stop = self.last.searchsorted(marked[0], "left"), self.first.searchsorted(marked[-1], "right")
            # Cells of the canvas's padding are part of no pixel.
            if start < stop:
                return _Window(
                    slice(int(start), int(stop)), slice(int(self.first[start]), int(self.last[stop - 1]) + 1)
                )
        return _Window(slice(0, 0), slice(0, 0))


class _KeptEnlargings:
    """Those that were used last, as many as fit into so many bytes: images of one size come together. Thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[int, int, int, int, torch.device], _Enlarging] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, cells: int, canvas: int, used: int, pixels: int, device: torch.device) -> _Enlarging:
        """Return what `_enlarging` does."""
        key = (cells, canvas, used, pixels, device)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = _enlarging(*key)
        with self._lock:
            self._kept[key] = made
            while self.num_bytes > self._max_bytes:
                self._kept.popitem(last=False)
        return made

    @property
    def num_bytes(self) -> int:
        """What is kept."""
        return sum(one.num_bytes for one in self._kept.values())


def _enlarging(cells: int, canvas: int, used: int, pixels: int, device: torch.device) -> _Enlarging:
    """Combine the resize from `cells` to the canvas with that from its `used` part to the image's pixels."""
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
    """Return the two places that each new one lies between, and how far it is from the first, as torch resizes."""
    centers = (torch.arange(new_size, dtype=torch.float32) + 0.5) * torch.tensor(size / new_size) - 0.5
    centers.clamp_(min=0)
    low = centers.long().clamp(max=size - 1)
    return low, (low + 1).clamp(max=size - 1), centers - low


__all__ = ["MAX_CHUNK_PIXELS", "MaskGeometry", "WindowedMask", "check_finite", "class_probabilities"]
