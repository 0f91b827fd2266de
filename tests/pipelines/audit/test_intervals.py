"""How often the intervals of an audit hold the truth, in collections whose truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from pipelines.audit.draw import SampleSize, draw, number_sql
from pipelines.audit.estimates import CheckedCategory, Quality, estimate
from pipelines.audit.sample import EDGES

_AUDITS = 200


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A category: how it occurs, and how well it is found.

    Attributes:
        share: of the images that have objects of it.
        per_image: mean number of further objects in such an image.
        found, wrong: share of the objects that is found, and wrong masks for each image.
        alike: how much an image's objects share their fate, in [0, 1].
    """

    share: float
    per_image: float
    found: float
    wrong: float
    alike: float = 0.0


KINDS = {
    "common": Kind(share=0.6, per_image=0.5, found=0.9, wrong=0.08),
    "rare": Kind(share=0.02, per_image=0.2, found=0.75, wrong=0.004),
    "nearly perfect": Kind(share=0.3, per_image=0.3, found=0.985, wrong=0.004),
    "in crowds": Kind(share=0.25, per_image=4.0, found=0.8, wrong=0.3, alike=0.6),
}


@dataclass(frozen=True, kw_only=True)
class Category:
    """A category in a collection: by image band and missed objects; by mask its image, band and whether it is right."""

    bands: np.ndarray
    missed: np.ndarray
    of_images: np.ndarray
    mask_bands: np.ndarray
    right: np.ndarray

    @property
    def truth(self) -> tuple[float, float]:
        right = self.right.sum()
        return right / len(self.right), right / (right + self.missed.sum())


def collection(rng: np.random.Generator, num_images: int) -> dict[str, Category]:
    """Objects are found or not, and masks get scores that tell a little of whether they are right."""
    found = {}
    for name, kind in KINDS.items():
        objects = np.where(rng.random(num_images) < kind.share, 1 + rng.poisson(kind.per_image, num_images), 0)
        # A share of an image's objects is lost or found together.
        fate = np.where(
            rng.random(num_images) < kind.alike, (rng.random(num_images) < kind.found).astype(float), kind.found
        )
        hits, wrong = rng.binomial(objects, fate), rng.poisson(kind.wrong, num_images)
        of_images = np.concatenate([np.repeat(np.arange(num_images), hits), np.repeat(np.arange(num_images), wrong)])
        right = np.arange(len(of_images)) < hits.sum()
        scores = np.where(right, rng.beta(5, 2, len(right)), rng.beta(2, 3, len(right)))
        kept = scores >= 0.3  # masks below it are not audited, but tell in which images something may be
        missed = objects - np.bincount(of_images[right & kept], minlength=num_images)
        best = np.full(num_images, -1.0)
        np.maximum.at(best, of_images, scores)
        band = lambda values: np.where(values < 0, 0, np.searchsorted(EDGES, values, side="right"))  # noqa: E731
        found[name] = Category(
            bands=band(best),
            missed=missed,
            of_images=of_images[kept],
            mask_bands=band(scores[kept]),
            right=right[kept],
        )
    return found


class Audits:
    """A collection that is audited again and again."""

    def __init__(self, categories: dict[str, Category], num_images: int) -> None:
        self.categories = categories
        self.database = duckdb.connect(config={"threads": 1})
        ids = [f"{number:06d}" for number in range(num_images)]
        names = [name for name in categories for _ in ids]
        bands = np.concatenate([one.bands for one in categories.values()])
        pairs = pa.table({"image_id": ids * len(categories), "category_name": names, "band": bands})
        self.database.register("pairs_to_keep", pairs)
        self.database.execute("CREATE TABLE pairs AS FROM pairs_to_keep")
        self.database.execute("CREATE TABLE images AS SELECT DISTINCT image_id FROM pairs")

    def drawn(self, seed: int, size: SampleSize) -> dict[int, float]:
        """Draw a sample: the probability of each image."""
        for name in ("audit_strata", "audit_images"):
            self.database.execute(f"DROP TABLE IF EXISTS {name}")
        self.database.execute(
            f"CREATE OR REPLACE TEMP TABLE numbers AS SELECT image_id, {number_sql(seed)} AS number FROM images"
        )
        self.database.execute("CREATE OR REPLACE TEMP VIEW audit_pairs AS FROM pairs JOIN numbers USING (image_id)")
        draw(self.database, size)
        return dict(self.database.execute("SELECT image_id::INT, probability FROM audit_images ORDER BY 1").fetchall())

    def estimates(self, seed: int, size: SampleSize) -> tuple[list[Quality], Quality]:
        """Draw a sample, look at it, and estimate."""
        drawn = self.drawn(seed, size)
        chosen, places = np.array(list(drawn)), {image: place for place, image in enumerate(drawn)}
        checked = []
        for one in self.categories.values():
            masks = np.flatnonzero(np.isin(one.of_images, chosen))
            checked.append(
                CheckedCategory(
                    images=np.arange(len(chosen)),
                    probabilities=np.array(list(drawn.values())),
                    bands=one.bands[chosen],
                    missed=one.missed[chosen],
                    of_images=np.array([places[image] for image in one.of_images[masks]], np.int64),
                    mask_bands=one.mask_bands[masks],
                    right=one.right[masks],
                    image_totals=np.bincount(one.bands, minlength=len(EDGES) + 1),
                    mask_totals=np.bincount(one.mask_bands, minlength=len(EDGES) + 1),
                )
            )
        return estimate(checked, len(chosen), seed)


@pytest.fixture(scope="module")
def audits() -> Audits:
    return Audits(collection(np.random.default_rng(1), 20_000), 20_000)


@pytest.mark.parametrize("size", [SampleSize(), SampleSize(per_band=8, without=40)], ids=["default", "small"])
def test_intervals_of_95_percent_hold_the_truth_in_at_least_90_of_100_audits(audits: Audits, size: SampleSize) -> None:
    held = {name: np.zeros(2) for name in [*KINDS, "all"]}
    widths = {name: np.zeros(2) for name in held}
    right = sum(one.right.sum() for one in audits.categories.values())
    masks = sum(len(one.right) for one in audits.categories.values())
    missed = sum(one.missed.sum() for one in audits.categories.values())
    truths = {name: one.truth for name, one in audits.categories.items()} | {
        "all": (right / masks, right / (right + missed))
    }
    for seed in range(_AUDITS):
        each, whole = audits.estimates(seed, size)
        for name, quality in zip(held, [*each, whole], strict=True):
            shares = (quality.precision, quality.recall)
            held[name] += [one.low <= true <= one.high for one, true in zip(shares, truths[name], strict=True)]
            widths[name] += [one.high - one.low for one in shares]
    for name, count in held.items():
        shares = [
            f"{100 * one / _AUDITS:.1f} % held, {one_width / _AUDITS:.3f} wide"
            for one, one_width in zip(count, widths[name], strict=True)
        ]
        print(f"{name}: truth {truths[name][0]:.3f}, {shares[0]}; {truths[name][1]:.3f}, {shares[1]}")
    assert all((share >= 0.9 * _AUDITS).all() for share in held.values()), held


def test_an_image_is_drawn_as_often_as_its_probability_says(audits: Audits) -> None:
    size, totals = SampleSize(per_band=5, without=10), []
    counts = {name: len(one.right) for name, one in audits.categories.items()}
    for seed in range(150):
        drawn = audits.drawn(seed, size)
        weights = np.zeros(20_000)
        weights[list(drawn)] = 1 / np.array(list(drawn.values()))
        totals.append([weights[one.of_images].sum() for one in audits.categories.values()])
    mean, error = np.mean(totals, 0), np.std(totals, 0) / np.sqrt(len(totals))
    assert (abs(mean - list(counts.values())) < 4 * error).all(), (mean, error, counts)


def test_a_larger_sample_of_the_same_seed_holds_the_smaller_one(audits: Audits) -> None:
    small, large = (
        audits.drawn(3, SampleSize(per_band=5, without=10)),
        audits.drawn(3, SampleSize(per_band=9, without=30)),
    )
    assert small.keys() < large.keys()
    assert not small.keys() <= audits.drawn(4, SampleSize(per_band=9, without=30)).keys()


def test_of_a_collection_that_was_checked_whole_the_result_is_certain() -> None:
    audits = Audits(collection(np.random.default_rng(2), 50), 50)
    each, whole = audits.estimates(0, SampleSize(per_band=50, without=50))
    for one, quality in zip(audits.categories.values(), each, strict=True):
        if len(one.right):
            assert quality.precision.estimate == pytest.approx(one.truth[0])
            assert (quality.precision.low, quality.precision.high) == pytest.approx((one.truth[0], one.truth[0]))
    assert whole.recall.low == pytest.approx(whole.recall.high)
