"""From logits to maps that give every pixel of an image one label: panoptic and semantic, in bounded memory.

Works on one image at a time. No two full maps of logits of all queries or categories exist together: each pixel
remembers only its best value so far and whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from xsam_model.post_processing.mask_geometry import MAX_CHUNK_PIXELS, MaskGeometry, check_finite, class_probabilities

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class Segment:
    """A region of a map.

    Attributes:
        id: value of its pixels in the map.
        label: position of the category among the image's conditions.
        is_thing: whether it is one object; False for stuff and in semantic maps.
        score: in [0, 1]. Panoptic: class score times mask score. Semantic: see `semantic_segmentation`.
        area: pixels; at least 1.
        class_score: in [0, 1], the probability of the category, which is the score in the reference implementation.
            None in semantic maps, where all queries have their share in each pixel.
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
        segments: in the order of their queries, ids from 1.
    """

    segmentation: Tensor
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SemanticSegmentation:
    """The category of every pixel of one image.

    Attributes:
        labels: (H, W) int64 at the original size of the image: position of the category among the image's conditions;
            -1 everywhere if there are none.
        segments: one for each category that has pixels, by label; `id` and `label` are the same.
    """

    labels: Tensor
    segments: tuple[Segment, ...]


class _Contest:
    """The best value of each pixel so far, and who has it: an argmax over maps that come one after the other."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self.best = torch.full(size, -1.0, device=device)
        self.owner = torch.full(size, -1, dtype=torch.int32, device=device)

    def enter(self, values: Tensor, owner: int) -> None:
        """Let (H, W) values of at least 0 compete; the earlier of two equal ones wins."""
        self.owner.masked_fill_(values > self.best, owner)
        torch.maximum(self.best, values, out=self.best)

    def results(self, count: int, max_chunk_pixels: int) -> tuple[Tensor, Tensor]:
        """Return pixels (count,) int64 and the sum of the best values over them (count,) float64, by owner."""
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
    """Divide an image among the queries that are sure of their category (Mask2Former's inference).

    Each pixel goes to the query with the highest product of class and mask probability. A query whose own mask was
    mostly taken by others gets nothing, and its pixels are void.

    Args:
        class_logits: (Q, K + 1), background last; columns of padding before it are ignored.
        mask_logits: (Q, h, w) on the reduced canvas.
        geometry: sizes of canvas and image.
        num_conditions: conditions of this image; all K by default.
        stuff: positions of the conditions whose segments are fused into one, as sky or grass.
        threshold: in [0, 1]. Queries whose class score is not greater take no part. The reference implementation
            evaluates with 0 and shows pictures with 0.5.
        mask_threshold: in [0, 1]. A query's own mask is where its product is at least this.
        overlap_threshold: in [0, 1]. A query must have won more pixels than this share of its own mask's.
        id_policy: "unique" gives each segment an id of its own and adds up the parts of fused ones: class and mask
            score are means over pixels. "reference" repeats the reference implementation: an entry for each query, and
            where stuff is fused into an earlier segment, counting goes on from that one's id, so that different
            segments may share an id and a region of the map.
        max_chunk_pixels: pixels of mask logits to hold at once; at least one mask is.

    Raises:
        FloatingPointError: if a logit is not finite: the masks would mean nothing.
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
        return PanopticSegmentation(void, ())  # no product can reach the threshold, so no query has a mask of its own
    contest = _Contest(geometry.original_size, mask_logits.device)
    own_areas = torch.zeros_like(queries)
    position = 0
    for _, logits in geometry.iter_enlarged(mask_logits, queries, max_chunk_pixels):
        for probability in logits.sigmoid_():
            products = probability.mul_(class_scores[position])
            own_areas[position] = (products >= mask_threshold).sum()
            contest.enter(products, position)
            position += 1
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


def _number(parts: list[Segment], id_policy: str) -> list[int]:
    """Return each part's id: of a class of stuff all parts have the same."""
    ids: list[int] = []
    of_stuff: dict[int, int] = {}
    for part in parts:
        last = 0 if not ids else ids[-1] if id_policy == "reference" else max(ids)
        ids.append(last + 1 if part.is_thing else of_stuff.setdefault(part.label, last + 1))
    return ids


def _fuse(parts: list[Segment]) -> list[Segment]:
    """Add up parts with the same id."""
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
    """Give each pixel the category with the highest sum, over all queries, of class times mask probability.

    As the reference implementation does, probabilities are added up on the canvas, before the second resize. The score
    of a segment, which the reference implementation does not have, is the mean of that sum over its pixels; queries
    that agree add up, so it is capped at 1.

    Args:
        class_logits: (Q, K + 1), background last; columns of padding before it are ignored.
        mask_logits: (Q, h, w) on the reduced canvas.
        geometry: sizes of canvas and image.
        num_conditions: conditions of this image; all K by default.
        max_chunk_pixels: pixels of category maps to hold at once; at least one map is, and a quarter as much of mask
            logits. Categories that do not fit together cost a further pass over the queries.

    Raises:
        FloatingPointError: if a logit is not finite: the labels would mean nothing.
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


__all__ = ["PanopticSegmentation", "Segment", "SemanticSegmentation", "panoptic_segmentation", "semantic_segmentation"]
