"""From logits to panoptic and semantic maps, which give every pixel of an image one label, in bounded memory.

Works on one image at a time. The full-size logits of all queries or categories never exist together: for each pixel
only its best value so far and the owner of that value are kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from xsam_model.post_processing.mask_geometry import MAX_CHUNK_PIXELS, MaskGeometry, check_finite, class_probabilities


@dataclass(frozen=True, slots=True)
class Segment:
    """A region of a map.

    Attributes:
        id: value of its pixels in the map.
        label: position of the category among the image's conditions.
        is_thing: whether it is one object; False for stuff and in semantic maps.
        score: in [0, 1]. Panoptic: class score times mask score. Semantic: see `semantic_segmentation`.
        area: number of pixels, at least 1.
        class_score: in [0, 1], probability of the category, which the reference implementation returns as the score.
            None in semantic maps, where all queries contribute to each pixel.
        mask_score: in [0, 1], mean mask probability over the segment's pixels. None in semantic maps.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int
    class_score: float | None = None
    mask_score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PanopticSegmentation:
    """Segments of one image that do not overlap.

    Attributes:
        segmentation: (H, W) int32 at the original size of the image: the segment's id, 0 for void.
        segments: ordered by query, with ids from 1.
    """

    segmentation: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SemanticSegmentation:
    """The category of every pixel of one image.

    Attributes:
        labels: (H, W) int64 at the original size of the image: position of the category among the image's conditions;
            -1 everywhere if there are no conditions.
        segments: one for each category that has pixels, ordered by label; `id` equals `label`.
    """

    labels: Tensor
    segments: tuple[Segment, ...]


class _Contest:
    """A running argmax over maps: keeps the best value of each pixel so far, and its owner."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        # Below every value, so that the first map owns all pixels, those with value 0 included.
        self.best = torch.full(size, -1.0, device=device)
        self.owner = torch.full(size, -1, dtype=torch.int32, device=device)

    def enter(self, values: Tensor, owner: int) -> None:
        """Enter an owner's (H, W) values, at least 0; of two equal values the earlier one wins."""
        self.owner.masked_fill_(values > self.best, owner)
        torch.maximum(self.best, values, out=self.best)

    def results(self, count: int, max_chunk_pixels: int) -> tuple[Tensor, Tensor]:
        """Return the pixels of each owner, (count,) int64, and the sum of its values over them, (count,) float64."""
        # In chunks, because bincount takes its weights as float64. Sums of millions of pixels would round in float32.
        areas = torch.zeros(count, dtype=torch.int64, device=self.best.device)
        sums = torch.zeros(count, dtype=torch.float64, device=self.best.device)
        parts = (self.owner.flatten().split(max_chunk_pixels), self.best.flatten().split(max_chunk_pixels))
        for owners, values in zip(*parts, strict=True):
            areas += torch.bincount(owners, minlength=count)
            sums += torch.bincount(owners, weights=values.double(), minlength=count)
        return areas, sums


def panoptic_segmentation(  # noqa: PLR0913  (each is a choice of its own)
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    stuff: Collection[int] = (),
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_threshold: float = 0.8,
    id_policy: Literal["unique", "reference"] = "unique",
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> PanopticSegmentation:
    """Panoptic segmentation: divide an image among the queries that are sure of their category (as in Mask2Former).

    Each pixel goes to the query with the highest product of class and mask probability. A query that loses most of its
    own mask to others gets no segment, and the pixels that it won are void.

    Args:
        class_logits: (Q, K + 1), background last; padding columns before it are ignored.
        mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
        geometry: sizes of canvas and image.
        num_conditions: number of conditions of this image; all K by default.
        stuff: positions of the conditions whose segments are fused into one, such as sky or grass.
        threshold: in [0, 1]. Only queries with a higher class score take part. The reference implementation evaluates
            with 0 and draws pictures with 0.5.
        mask_threshold: in [0, 1]. A query's own mask is where its product is at least this.
        overlap_threshold: in [0, 1]. The pixels that a query wins must exceed this share of the area of its own mask.
        id_policy: "unique" gives each segment an id of its own and fuses the parts of stuff: scores are means over
            pixels. "reference" reproduces the reference implementation: one entry for each query, and after stuff is
            fused into an earlier segment, ids continue from that one's, so that different segments may share an id and
            a region of the map.
        max_chunk_pixels: most mask logits to hold at once, in pixels; at least one mask is held.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the masks meaningless.
        ValueError: if the id policy is unknown.
    """
    if id_policy not in ("unique", "reference"):
        raise ValueError(f"unknown id policy {id_policy!r}; known: unique, reference")
    check_finite(class_logits, mask_logits)
    void = torch.zeros(geometry.original_size, dtype=torch.int32, device=mask_logits.device)
    probabilities = class_probabilities(class_logits, num_conditions)
    if not probabilities.shape[1]:
        return PanopticSegmentation(void, ())
    class_scores, labels = probabilities.max(1)
    queries = (class_scores > threshold).nonzero()[:, 0]
    class_scores, labels = class_scores[queries], labels[queries]
    if not (class_scores >= mask_threshold).any():
        return PanopticSegmentation(void, ())  # no product can reach the threshold, so every query's own mask is empty
    contest = _Contest(geometry.original_size, mask_logits.device)
    enlarged = geometry.iter_enlarged(mask_logits, queries, max_chunk_pixels)
    own_areas = _enter_products(contest, (logits for _, logits in enlarged), class_scores, mask_threshold)
    areas, sums = contest.results(len(queries), max_chunk_pixels)
    valid = (areas > 0) & (own_areas > 0) & (areas / own_areas > overlap_threshold)
    parts = [
        Segment(0, label, label not in stuff, product, area, score, product / score)
        for label, score, product, area in zip(
            labels[valid].tolist(),
            class_scores[valid].tolist(),
            (sums / areas)[valid].tolist(),
            areas[valid].tolist(),
            strict=True,
        )
    ]
    ids = _number(parts, id_policy)
    by_query = void.new_zeros(len(queries))
    by_query[valid] = by_query.new_tensor(ids)
    segmentation = by_query.index_select(0, contest.owner.flatten()).view(void.shape)
    numbered = [replace(part, id=number) for part, number in zip(parts, ids, strict=True)]
    return PanopticSegmentation(segmentation, tuple(numbered if id_policy == "reference" else _fuse(numbered)))


def _enter_products(
    contest: _Contest, enlarged: Iterable[Tensor], class_scores: Tensor, mask_threshold: float
) -> Tensor:
    """Enter the product of class and mask probability of each query, and return the areas of their own masks.

    Args:
        contest: takes the products under the queries' positions.
        enlarged: (n, H, W) mask logits, chunk by chunk; overwritten.
        class_scores: (N,) of all queries in the order of the chunks.
        mask_threshold: lowest product inside a query's own mask.

    Returns:
        (N,) int64, in pixels.
    """
    own_areas = torch.zeros_like(class_scores, dtype=torch.int64)
    position = 0
    for logits in enlarged:
        for probability in logits.sigmoid_():
            products = probability.mul_(class_scores[position])
            # As in the reference implementation, the own mask is cut from the products, not from mask probabilities.
            own_areas[position] = (products >= mask_threshold).sum()
            contest.enter(products, position)
            position += 1
    return own_areas


def _number(parts: list[Segment], id_policy: str) -> list[int]:
    """Return the id of each part; all parts of one stuff category have the same."""
    ids: list[int] = []
    of_stuff: dict[int, int] = {}
    for part in parts:
        # Counting on from the last id, which may be that of earlier stuff, is what lets the reference repeat ids.
        last = 0 if not ids else ids[-1] if id_policy == "reference" else max(ids)
        ids.append(last + 1 if part.is_thing else of_stuff.setdefault(part.label, last + 1))
    return ids


def _fuse(parts: list[Segment]) -> list[Segment]:
    """Merge parts with the same id."""
    fused: dict[int, Segment] = {}
    for part in parts:
        fused[part.id] = _add(fused[part.id], part) if part.id in fused else part
    return list(fused.values())


def _add(first: Segment, second: Segment) -> Segment:
    area = first.area + second.area
    scores = {}
    for name in ("score", "class_score", "mask_score"):
        scores[name] = (getattr(first, name) * first.area + getattr(second, name) * second.area) / area
    return replace(first, area=area, **scores)


def semantic_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> SemanticSegmentation:
    """Semantic segmentation: give each pixel the category with the highest sum of class times mask probability.

    The sum is over all queries. As in the reference implementation it is formed on the canvas, before the second
    resize. The score of a segment, which the reference implementation lacks, is the mean of that sum over its pixels;
    several queries may exceed 1 together, so it is capped there.

    Args:
        class_logits: (Q, K + 1), background last; padding columns before it are ignored.
        mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
        geometry: sizes of canvas and image.
        num_conditions: number of conditions of this image; all K by default.
        max_chunk_pixels: most category maps to hold at once, in pixels; at least one map is held, and a quarter as many
            mask logits. Each further chunk of categories costs another pass over all queries.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the labels meaningless.
    """
    check_finite(class_logits, mask_logits)
    probabilities = class_probabilities(class_logits, num_conditions)
    num_queries, count = probabilities.shape
    if not count:
        labels = torch.full(geometry.original_size, -1, dtype=torch.int64, device=mask_logits.device)
        return SemanticSegmentation(labels, ())
    contest = _Contest(geometry.original_size, mask_logits.device)
    categories = torch.arange(count).split(max(1, max_chunk_pixels // geometry.canvas_size**2))
    step = max(1, max_chunk_pixels // 4 // geometry.canvas_size**2)
    for chunk in categories:
        first, last = int(chunk[0]), int(chunk[-1]) + 1
        maps = torch.zeros((last - first, *geometry.scaled_size), device=mask_logits.device)
        for start in range(0, num_queries, step):
            # Sigmoid before the second resize, as in the reference implementation; after it, labels could differ.
            masks = geometry.enlarge_to_canvas(mask_logits[start : start + step]).sigmoid()
            weights = probabilities[start : start + step, first:last]
            maps.flatten(1).addmm_(weights.T, masks.flatten(1))
        for category, values in enumerate(maps, first):
            contest.enter(geometry.enlarge_to_image(values[None])[0], category)
    areas, sums = contest.results(count, max_chunk_pixels)
    segments = tuple(
        Segment(label, label, False, min(total / area, 1.0), area)
        for label, (area, total) in enumerate(zip(areas.tolist(), sums.tolist(), strict=True))
        if area
    )
    return SemanticSegmentation(contest.owner.long(), segments)
