"""Calibrated scores: probabilities by a temperature and an offset of logits, in the order of the scores before."""

import math

import pytest
import torch
import torch.nn.functional as F

from xsam_model.post_processing.calibration import NOT_CALIBRATED, ScoreCalibration, calibration_of
from xsam_model.post_processing.instances import (
    instance_segmentation,
    interactive_segmentation,
    iter_phrases,
    phrase_segmentation,
)
from xsam_model.post_processing.mask_geometry import MaskGeometry
from xsam_model.testing import untrained_tiny_config

GEOMETRY = MaskGeometry(canvas_size=64, scaled_size=(48, 64), original_size=(90, 120))
TWICE_AS_SURE = ScoreCalibration(temperature=0.5, offset=-1.0)
SCORES = torch.tensor([0.0, 1e-7, 0.02, 0.5, 0.9, 0.99999, 1.0])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    classes = 3 * torch.randn(12, 5, generator=generator)
    masks = F.interpolate(torch.randn(1, 12, 4, 4, generator=generator), (16, 16), mode="bilinear")[0] * 4
    return classes, masks


def by_definition(scores, calibration):
    return torch.sigmoid(torch.logit(scores.double()) / calibration.temperature + calibration.offset)


def test_a_score_becomes_the_sigmoid_of_its_scaled_and_moved_logit_and_no_two_change_places():
    found = TWICE_AS_SURE.of(SCORES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_definition(SCORES, TWICE_AS_SURE), atol=1e-7, rtol=1e-6)
    assert (found[0], found[-1]) == (0, 1)
    assert (found.diff() >= 0).all()
    assert found[3].item() == pytest.approx(1 / (1 + math.e))


@pytest.mark.parametrize("calibration", [TWICE_AS_SURE, ScoreCalibration(3.0, 0.7), NOT_CALIBRATED])
def test_the_score_before_a_calibrated_one_is_found_again(calibration):
    for score in SCORES.double().tolist():
        after = calibration.of(torch.tensor(score, dtype=torch.float64)).item()
        assert calibration.before(after) == pytest.approx(score, rel=1e-6)


def test_without_a_calibration_of_the_task_scores_stay_as_they_are_to_the_bit():
    settings = {"ovseg": {"temperature": 2.0, "offset": 0.5}}
    assert calibration_of(settings, "ovseg") == ScoreCalibration(2.0, 0.5)
    assert calibration_of(settings, "vgdseg").of(SCORES) is SCORES
    assert calibration_of(None, "ovseg").of(SCORES) is SCORES


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
def test_instances_are_the_same_masks_in_the_same_order_and_the_threshold_is_one_of_calibrated_scores(
    logits, threshold
):
    plain = instance_segmentation(*logits, GEOMETRY, top_k=30)
    found = instance_segmentation(*logits, GEOMETRY, top_k=30, threshold=threshold, calibration=TWICE_AS_SURE)
    scores = by_definition(plain.scores, TWICE_AS_SURE)
    count = int((scores >= threshold).sum())
    assert 2 < count == len(found)
    assert threshold == 0 or count < len(plain)
    torch.testing.assert_close(found.scores.double(), scores[:count], atol=1e-6, rtol=0)
    assert torch.equal(found.masks, plain.masks[:count])
    assert torch.equal(found.labels, plain.labels[:count])
    assert torch.equal(found.mask_scores, plain.mask_scores[:count])


def test_phrases_and_prompts_keep_their_masks_and_have_calibrated_scores(logits):
    classes, masks = logits
    for plain, found in (
        [phrase_segmentation(*logits, GEOMETRY, **how) for how in ({}, {"calibration": TWICE_AS_SURE})],
        [
            interactive_segmentation(classes[:, [0, 4]], masks, GEOMETRY, torch.ones(90, 120), **how)
            for how in ({}, {"calibration": TWICE_AS_SURE})
        ],
    ):
        torch.testing.assert_close(found.scores.double(), by_definition(plain.scores, TWICE_AS_SURE), rtol=1e-5, atol=0)
        assert torch.equal(found.masks, plain.masks)
        assert torch.equal(found.class_scores, plain.class_scores)
    together = phrase_segmentation(*logits, GEOMETRY, calibration=TWICE_AS_SURE)
    for phrases in iter_phrases(*logits, GEOMETRY, calibration=TWICE_AS_SURE):
        assert torch.equal(phrases.scores, together.scores[phrases.labels])


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0, "offset": 0.0},
        {"temperature": -1.0, "offset": 0.0},
        {"temperature": float("nan"), "offset": 0.0},
        {"temperature": 1.0, "offset": float("inf")},
        {"temperature": 1.0},
        {"temperature": 1.0, "offset": 0.0, "scale": 2.0},
    ],
)
def test_a_calibration_that_would_turn_or_lose_scores_is_refused(fields):
    with pytest.raises(ValueError, match=r"score_calibration\['ovseg'\] must have a temperature above 0 and an offset"):
        untrained_tiny_config(score_calibration={"ovseg": fields})
