"""What keeping masks from a score on means: precision, recall, F1, what is mistaken for what, and the best scores.

Masks are matched at IoU 0.5. Matching goes from the best score down, so that the matches of the masks above a score are
the same whether or not those below it are there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.coco_matching import FoundMask, Matched, TrueMask, greedy_pairs, match
from pipelines.masks import rle

_IOU = 0.5
_MAX_CURVE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The masks of one category, or of all, that are kept from a score on.

    Attributes:
        score: the least score that is kept; None where each category has its own.
        num_true: true objects, without crowds.
        num_found: masks kept, without those in crowds.
        num_correct: masks kept that match an object.
    """

    score: float | None
    num_true: int
    num_found: int
    num_correct: int

    @property
    def precision(self) -> float | None:
        """Share of the masks that match an object; None without masks."""
        return self.num_correct / self.num_found if self.num_found else None

    @property
    def recall(self) -> float | None:
        """Share of the objects that are matched; None without objects."""
        return self.num_correct / self.num_true if self.num_true else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 0 if nothing is correct; None without masks and objects."""
        both = self.num_found + self.num_true
        return 2 * self.num_correct / both if both else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """How often one category was found where another is; None for "nothing there", and for "not found"."""

    true: str | None
    found: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The consequences of a score.

    Attributes:
        whole: all categories together.
        categories: each category at the score.
        best: each category at the score that is best for its F1, if any mask of it is correct.
        confusion: what was found where what is, most frequent first.
        curve: all categories together at the scores at which anything changes, the highest first; of very many scores
            some 1,000, evenly.
    """

    whole: Decision
    categories: dict[str, Decision]
    best: dict[str, Decision]
    confusion: tuple[Confusion, ...]
    curve: tuple[Decision, ...]


def decide(truth: Sequence[TrueMask], predictions: Sequence[FoundMask], score: float | None) -> Decisions:
    """Return what keeping the masks from a score on means.

    Args:
        truth: the objects of all evaluated images.
        predictions: masks with the same sizes as their image's truth.
        score: the least score that is kept, compared as float32, in which scores are stored; None for the one that is
            best for the F1 of each category.

    Raises:
        ValueError: no truth except crowds, masks of different sizes in one image, or broken RLE.
    """
    matched = match(truth, predictions, max_found_per_image=max(1, len(predictions)), ious=[_IOU])
    rows = _rows(matched)
    num_true = Counter(mask.category for mask in truth if not mask.is_crowd)
    best = {name: found for name in matched.names if (found := _best(rows[name], num_true[name])) is not None}
    least = {name: score if score is not None else _score_of(best, name) for name in matched.names}
    categories = {name: _at(rows[name], num_true[name], least[name]) for name in matched.names}
    sums = [sum(getattr(one, what) for one in categories.values()) for what in ("num_true", "num_found", "num_correct")]
    steps = _steps(_Rows.joined(list(rows.values())), num_true.total())
    return Decisions(
        whole=Decision(score=score, num_true=sums[0], num_found=sums[1], num_correct=sums[2]),
        categories=categories,
        best=best,
        confusion=_confusion(truth, predictions, rows, least),
        curve=tuple(steps[:: max(1, len(steps) // _MAX_CURVE)]),
    )


def _score_of(best: dict[str, Decision], name: str) -> float:
    """Return a category's best score; infinity for one of which nothing is correct: none of it is better than some."""
    score = best[name].score if name in best else None
    return float("inf") if score is None else score


@dataclass(frozen=True, slots=True)
class _Rows:
    """Masks in the order of falling scores: position among the predictions, float32 score, position of the object
    that each matches or -1, all (N,). Without those in crowds."""

    places: NDArray[np.int64]
    scores: NDArray[np.float32]
    objects: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[_Rows]) -> _Rows:
        places = np.concatenate([part.places for part in parts])
        scores = np.concatenate([part.scores for part in parts])
        objects = np.concatenate([part.objects for part in parts])
        order = np.argsort(-scores, kind="stable")
        return cls(places[order], scores[order], objects[order])


def _rows(matched: Matched) -> dict[str, _Rows]:
    """Return the masks of each category with what COCOeval matched them to."""
    none = _Rows(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
    parts: dict[str, list[_Rows]] = {name: [none] for name in matched.names}
    for image in matched.evaluation.evalImgs:
        if image is not None:
            kept = ~np.asarray(image["dtIgnore"][0], bool)
            # Ids are positions plus 1, and 0 is no match.
            places = np.asarray(image["dtIds"], np.int64)[kept] - 1
            objects = np.asarray(image["dtMatches"][0], np.int64)[kept] - 1
            name = matched.names[image["category_id"] - 1]
            parts[name].append(_Rows(places, np.asarray(image["dtScores"], np.float32)[kept], objects))
    return {name: _Rows.joined(of_name) for name, of_name in parts.items()}


def _at(rows: _Rows, num_true: int, score: float) -> Decision:
    kept = int(np.count_nonzero(rows.scores >= np.float32(score)))
    correct = int(np.count_nonzero(rows.objects[:kept] >= 0))
    return Decision(score=score, num_true=num_true, num_found=kept, num_correct=correct)


def _steps(rows: _Rows, num_true: int) -> list[Decision]:
    """Return a decision for each distinct score, the highest first."""
    ends = np.flatnonzero(np.diff(rows.scores, append=np.float32(-1)) != 0)
    correct = np.cumsum(rows.objects >= 0)
    return [
        Decision(
            # The shortest decimal that is this float32: taken as a threshold it keeps this mask.
            score=float(str(rows.scores[end])),
            num_true=num_true,
            num_found=int(end) + 1,
            num_correct=int(correct[end]),
        )
        for end in ends
    ]


def _best(rows: _Rows, num_true: int) -> Decision | None:
    """Return the decision of the best F1, of several the highest score; None if no mask is correct."""
    steps = [step for step in _steps(rows, num_true) if step.num_correct]
    return max(steps, key=lambda step: step.f1 or 0.0, default=None)


def _confusion(
    truth: Sequence[TrueMask], predictions: Sequence[FoundMask], rows: dict[str, _Rows], least: dict[str, float]
) -> tuple[Confusion, ...]:
    """Count what was found where what is: first within categories, as matched, then the rest, largest IoU first."""
    counts: Counter[tuple[str | None, str | None]] = Counter()
    wrong = defaultdict[int | str, list[int]](list)
    missed = {place for place, mask in enumerate(truth) if not mask.is_crowd}
    for name, of_name in rows.items():
        kept = int(np.count_nonzero(of_name.scores >= np.float32(least[name])))
        for place, one in zip(of_name.places[:kept].tolist(), of_name.objects[:kept].tolist(), strict=True):
            if one >= 0:
                counts[name, name] += 1
                missed.discard(one)
            else:
                wrong[predictions[place].image_id].append(place)
    left = defaultdict[int | str, list[int]](list)
    for place in sorted(missed):
        left[truth[place].image_id].append(place)
    for image_id in {**wrong, **left}:
        found, true = wrong[image_id], left[image_id]
        ious = rle.iou([predictions[n].segmentation for n in found], [truth[n].segmentation for n in true])
        pairs = greedy_pairs(ious, _IOU)
        counts.update((truth[true[column]].category, predictions[found[row]].category) for row, column in pairs)
        is_paired = [{row for row, _ in pairs}, {column for _, column in pairs}]
        counts.update((None, predictions[n].category) for row, n in enumerate(found) if row not in is_paired[0])
        counts.update((truth[n].category, None) for column, n in enumerate(true) if column not in is_paired[1])
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0][0] or "", item[0][1] or ""))
    return tuple(Confusion(true=pair[0], found=pair[1], count=count) for pair, count in order)
