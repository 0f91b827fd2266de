"""Precision and recall of a category from a stratified sample, with intervals.

Of each band of scores the share of right masks is estimated, and of each band of images the objects that were missed;
both are added up over the bands, of which the collection's totals are known. Intervals are those of a Bayesian
bootstrap over images (Rubin 1981), since masks of one image are alike. A band without a mistake is not one that can
have none: for the low end of an interval half a mistake is added to each band, for the high end half a unit without
(Jeffreys' half, added as Clopper and Pearson add one; of bands with less at stake, less). Images that were drawn are
certain; only the others are estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DRAWS, _AT_ONCE = 2000, 500
_CONFIDENCE = 0.95

Array = NDArray[np.float64]
_Draws = tuple[Array, Array]
"""Draws of a sum (D,): those for the low end of its interval, and those for the high end."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckedCategory:
    """What a check has found of one category, in the N drawn images that were asked of it.

    Attributes:
        images: int64 (N,), number of each image among all checked ones.
        probabilities: float64 (N,), with which each was drawn.
        bands: int64 (N,), band of its best mask; 0 without a mask.
        missed: int64 (N,), objects in it that no found mask shows.
        of_images: int64 (M,), place among these images of the image of each found mask.
        mask_bands: int64 (M,), band of each.
        right: bool (M,), whether it shows an object.
        image_totals, mask_totals: int64 (B,), images and found masks of the whole collection by band.
    """

    images: NDArray[np.int64]
    probabilities: Array
    bands: NDArray[np.int64]
    missed: NDArray[np.int64]
    of_images: NDArray[np.int64]
    mask_bands: NDArray[np.int64]
    right: NDArray[np.bool_]
    image_totals: NDArray[np.int64]
    mask_totals: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """An estimated share with the limits of its 95 % interval; None where nothing tells of it."""

    estimate: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Quality:
    """Precision and recall of one category, or of all."""

    precision: Share
    recall: Share


def estimate(categories: Sequence[CheckedCategory], num_images: int, seed: int = 0) -> tuple[list[Quality], Quality]:
    """Return the quality of each category, and that of all together.

    Args:
        categories: what a check has found of each.
        num_images: number of checked images.
        seed: of the draws that the intervals are made of.
    """
    rng = np.random.default_rng(seed)
    parts = [_Parts.of(one, num_images) for one in categories]
    sums = [one for part in parts for one in (part.right, part.missed)]
    # One product for all, since each has a few columns alone.
    ends = np.cumsum([one.sums.shape[1] for one in sums])[:-1]
    joined = np.concatenate([np.zeros((num_images, 0)), *(one.sums for one in sums)], axis=1)
    low, high = (np.zeros((len(sums), _DRAWS)) for _ in range(2))
    for start in range(0, _DRAWS, _AT_ONCE):
        # An image's draw is the same for all categories: what is mistaken in it may be mistaken together.
        drawn = np.split(rng.standard_exponential((_AT_ONCE, num_images)) @ joined, ends, axis=1)
        for place, one in enumerate(sums):
            here = slice(start, start + _AT_ONCE)
            low[place, here], high[place, here] = one.draw(drawn[place], rng)
    points = [part.point() for part in parts]
    each = [
        _quality(points[n], part.found, (low[2 * n], high[2 * n]), (low[2 * n + 1], high[2 * n + 1]))
        for n, part in enumerate(parts)
    ]
    whole = (sum(one for one, _ in points), sum(one for _, one in points))
    right, missed = ((low[kind::2].sum(0), high[kind::2].sum(0)) for kind in (0, 1))
    return each, _quality(whole, sum(part.found for part in parts), right, missed)


def _quality(point: tuple[float, float], found: int, right: _Draws, missed: _Draws) -> Quality:
    """Return the quality, given how many masks are right and how many objects missed: as estimated, and in draws."""
    is_right, is_missed = point
    precision = _share(is_right, found, (right[0] / max(found, 1), right[1] / max(found, 1)))
    return Quality(
        precision, _share(is_right, is_right + is_missed, (_part(right[0], missed[1]), _part(right[1], missed[0])))
    )


def _part(one: Array, rest: Array) -> Array:
    return np.divide(one, one + rest, out=np.zeros(len(one)), where=one + rest > 0)


def _share(part: float, whole: float, draws: _Draws) -> Share:
    if not whole:
        return Share(None, 0.0, 1.0)
    tail, value = (1 - _CONFIDENCE) / 2, part / whole
    low, high = float(np.quantile(draws[0], tail)), float(np.quantile(draws[1], 1 - tail))
    return Share(value, max(0.0, min(low, value)), min(1.0, max(high, value)))


@dataclass(frozen=True, slots=True)
class _Sums:
    """A sum over the collection that is estimated band by band: known in the sample, as a mean per unit elsewhere.

    Attributes:
        sure: what was seen.
        rest: float64 (K,), units that were not drawn, by band.
        sums: float64 (N, 2 K), of each image by band the units that it stands for, then what they add up to.
        scale: float64 (K,), the weight of a unit.
        prior: float64 (K,), how many units are added: without the property at the low end, with it at the high end.
        size: float64 (K,), what such a unit with the property counts.
    """

    sure: float
    rest: Array
    sums: Array
    scale: Array
    prior: Array
    size: Array

    @classmethod
    def of(
        cls,
        *,
        images: NDArray[np.int64],
        bands: NDArray[np.int64],
        counts: Array,
        probabilities: Array,
        totals: NDArray[np.int64],
        num_images: int,
    ) -> _Sums:
        """Prepare a sum over units (images or masks), each with its image, band and count."""
        bands, totals = _merged(bands, totals)
        num_bands, weight = len(totals), 1 / probabilities - 1
        rest = np.maximum(0, totals - np.bincount(bands, minlength=num_bands)).astype(float)
        # All drawn with certainty, and yet there are others: they were not checked.
        is_blind = (np.bincount(bands, weight, num_bands) <= 0)[bands]
        weight = np.where(is_blind, 1.0, weight)
        of_images = np.zeros((num_images, 2 * num_bands))
        np.add.at(of_images, (images, bands), weight)
        np.add.at(of_images, (images, num_bands + bands), weight * counts)
        sums = np.bincount(bands, weight, num_bands)
        squares = np.bincount(bands, weight**2, num_bands)
        scale = np.divide(squares, sums, out=np.ones(num_bands), where=sums > 0)
        total, squared = (np.bincount(bands, counts**power, num_bands) for power in (1, 2))
        usual = squared.sum() / total.sum() if total.any() else 1.0
        return cls(
            sure=float(counts.sum()),
            rest=rest,
            sums=of_images,
            scale=scale,
            prior=0.5 * rest / max(1.0, float(rest.max(initial=0))),
            size=np.divide(squared, total, out=np.full(num_bands, usual), where=total > 0),
        )

    def point(self) -> float:
        """Return the estimated sum."""
        weights, values = np.split(self.sums.sum(0), 2)
        means = np.divide(values, weights, out=np.zeros_like(weights), where=weights > 0)
        return self.sure + float(means @ self.rest)

    def draw(self, sums: Array, rng: np.random.Generator) -> _Draws:
        """Return sums (D,) that are as likely, given ``sums`` with D draws of the images' weights (D, 2 K)."""
        units, values = np.split(sums, 2, axis=1)
        added = rng.standard_gamma(np.broadcast_to(self.prior, units.shape)) * self.scale
        below = units + added
        means = [
            np.divide(above, below, out=np.zeros(units.shape), where=below > 0)
            for above in (values, values + added * self.size)
        ]
        return self.sure + means[0] @ self.rest, self.sure + means[1] @ self.rest


@dataclass(frozen=True, slots=True)
class _Parts:
    """The two sums of a category: masks that are right, and objects that are missed; ``found`` are all its masks."""

    found: int
    right: _Sums
    missed: _Sums

    @classmethod
    def of(cls, one: CheckedCategory, num_images: int) -> _Parts:
        right = _Sums.of(
            images=one.images[one.of_images],
            bands=one.mask_bands,
            counts=one.right.astype(float),
            probabilities=one.probabilities[one.of_images],
            totals=one.mask_totals,
            num_images=num_images,
        )
        missed = _Sums.of(
            images=one.images,
            bands=one.bands,
            counts=one.missed.astype(float),
            probabilities=one.probabilities,
            totals=one.image_totals,
            num_images=num_images,
        )
        return cls(int(one.mask_totals.sum()) if len(one.right) else 0, right, missed)

    def point(self) -> tuple[float, float]:
        return self.right.point(), self.missed.point()


def _merged(bands: NDArray[np.int64], totals: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Join each band of which nothing was checked with the nearest of which something was.

    Returns:
        The bands of the units, numbered anew, and the totals of the bands that are left.
    """
    seen = np.unique(bands)
    if not len(seen):
        return bands, totals[:0]
    nearest = np.abs(np.arange(len(totals))[:, None] - seen[None]).argmin(1)
    return nearest[bands], np.bincount(nearest, totals, len(seen)).astype(np.int64)
