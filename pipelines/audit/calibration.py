"""Fit how likely a mask of a score is right, category by category, to masks that a person has checked.

The fit is logistic in the logit of the score (Platt 1999, with his targets, which keep a few masks from being certain):
two numbers, since a free form such as isotonic regression needs about a thousand masks of each category to be better
(Niculescu-Mizil and Caruana 2005).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pipelines.errors import SourceError

LEAST_OF_EACH = 10
"""A category with fewer right or fewer wrong masks takes the fit of all categories together."""
_STEPS = 50
_RIDGE = 1e-3
_EPSILON = 1e-4
_GRID = 100
TABLE = pa.schema(
    [
        pa.field("category_name", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("probability", pa.float32(), nullable=False),
        pa.field("masks", pa.int32(), nullable=False),
        pa.field("fitted_to", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class ScoreFit:
    """The probability that a mask is right: the logistic function of ``slope`` * logit(score) + ``offset``."""

    slope: float
    offset: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the probabilities of scores in [0, 1]."""
        fitted: NDArray[np.float64] = 1 / (1 + np.exp(-(self.slope * _logit(scores) + self.offset)))
        return fitted


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """Checked masks: scores in [0, 1], whether each is right, and how many masks each stands for; all (N,)."""

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    weights: NDArray[np.float64]


def fit(rated: Rated) -> ScoreFit | None:
    """Fit the probability of being right; None if there are fewer than LEAST_OF_EACH right or wrong masks."""
    num_right = int(np.count_nonzero(rated.right))
    if min(num_right, len(rated.right) - num_right) < LEAST_OF_EACH:
        return None
    # As many masks as were checked, whatever they stand for: weights tell of the collection, not of certainty.
    weights = rated.weights * len(rated.weights) / rated.weights.sum()
    right, wrong = float(weights[rated.right].sum()), float(weights[~rated.right].sum())
    targets = np.where(rated.right, (right + 1) / (right + 2), 1 / (wrong + 2))
    features = np.stack([_logit(rated.scores), np.ones(len(targets))], axis=1)
    found = _newton(features, targets, weights)
    if found[0] < 0:  # a better score is no worse a sign: what seems so is chance
        found = np.array([0.0, _newton(features[:, 1:], targets, weights)[0]])
    return ScoreFit(float(found[0]), float(found[1]))


def calibration_table(by_category: Mapping[str, Rated], least: float) -> pa.Table:
    """Return the probabilities of scores in steps of a hundredth, for each category, as a table of the schema TABLE.

    Args:
        by_category: the checked masks.
        least: the score from which on masks were checked.

    Raises:
        SourceError: too few masks are right, or too few wrong, for all categories together.
    """
    every = list(by_category.values())
    joined = Rated(*(np.concatenate([getattr(one, name) for one in every]) for name in Rated.__slots__))
    common = fit(joined)
    if common is None:
        num_right = int(np.count_nonzero(joined.right))
        raise SourceError(
            f"of the checked masks {num_right:,} are right and {len(joined.right) - num_right:,} wrong: probabilities "
            f"can be fitted to at least {LEAST_OF_EACH} of each; draw a larger sample, or from a lower score on"
        )
    scores = np.unique(np.append(np.arange(_GRID + 1) / _GRID, least))
    scores = scores[scores >= least]
    rows: dict[str, list[object]] = {name: [] for name in TABLE.names}
    for category, rated in by_category.items():
        own = fit(rated)
        rows["category_name"] += [category] * len(scores)
        rows["score"] += scores.tolist()
        rows["probability"] += (own or common)(scores).tolist()
        rows["masks"] += [len(rated.right)] * len(scores)
        rows["fitted_to"] += ["all categories" if own is None else "this category"] * len(scores)
    return pa.table(rows, schema=TABLE)


def _newton(
    features: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the coefficients of a weighted logistic regression, kept from growing without bounds."""
    found = np.zeros(features.shape[1])
    for _ in range(_STEPS):
        fitted = 1 / (1 + np.exp(-features @ found))
        slope = features.T @ (weights * (fitted - targets)) + _RIDGE * found
        curvature = (features.T * (weights * fitted * (1 - fitted))) @ features + _RIDGE * np.eye(len(found))
        step = np.linalg.solve(curvature, slope)
        found = found - step
        if np.abs(step).max() < 1e-8:
            break
    return found


def _logit(scores: ArrayLike) -> NDArray[np.float64]:
    bounded = np.clip(np.asarray(scores, np.float64), _EPSILON, 1 - _EPSILON)
    return np.log(bounded / (1 - bounded))
