"""Calibration error: by hand, for honest and for boastful scores, and which masks are right."""

import math

import numpy as np
import pytest

from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.score_calibration import calibration_bins, expected_calibration_error, right_masks
from pipelines.masks import rle


def test_the_error_is_the_mean_distance_in_bins_weighted_by_their_masks():
    scores, right = [0.1, 0.2, 0.8, 0.9, 0.9, 1.0], [False, False, True, True, False, True]
    # two bins of three: |1.1 / 3 - 1 / 3| and |2.8 / 3 - 2 / 3|
    assert expected_calibration_error(scores, right, bins=2) == pytest.approx((0.1 / 3 + 0.8 / 3) / 2)
    # up to 0.5 and above: 2 and 4 masks
    expected = (2 * 0.15 + 4 * abs(0.9 - 0.75)) / 6
    assert expected_calibration_error(scores, right, bins=2, equal_mass=False) == pytest.approx(expected)


@pytest.mark.parametrize("equal_mass", [True, False])
def test_honest_scores_have_hardly_an_error_and_boastful_ones_what_they_boast(equal_mass):
    random = np.random.default_rng(0)
    scores = random.uniform(0.2, 0.9, 20_000)
    right = random.random(20_000) < scores
    assert expected_calibration_error(scores, right, equal_mass=equal_mass) < 0.02
    boast = expected_calibration_error(scores + 0.1, right, equal_mass=equal_mass)
    assert boast == pytest.approx(0.1, abs=0.015)
    counts = [one.count for one in calibration_bins(scores, right, equal_mass=equal_mass)]
    assert sum(counts) == 20_000
    assert (max(counts) - min(counts) <= 1) == equal_mass


def test_masks_fewer_than_bins_and_scores_at_the_ends_all_count():
    assert sum(one.count for one in calibration_bins([0.0, 1.0, 1.0], [False, True, True], equal_mass=False)) == 3
    assert sum(one.count for one in calibration_bins([0.5, 0.5], [True, False])) == 2
    assert math.isnan(expected_calibration_error([], []))


def test_a_mask_is_right_if_it_covers_an_object_of_its_name_in_its_image_by_half():
    whole, half, third = (np.zeros((6, 6), dtype=bool) for _ in range(3))
    whole[:], half[:3], third[:2] = True, True, True
    truth = [TrueMask("0", "cat", rle.encode(whole)), TrueMask("1", "dog", rle.encode(whole))]
    asked = [("0", "cat", half), ("0", "cat", whole), ("0", "cat", third), ("0", "dog", whole), ("1", "dog", whole)]
    found = [FoundMask(image, name, rle.encode(mask), 0.5) for image, name, mask in asked]
    assert right_masks(truth, found).tolist() == [True, True, False, False, True]
    assert right_masks([], found).tolist() == [False] * 5
