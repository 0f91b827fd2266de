"""Training sees prompts as inference does: in windows, with the part of the object that a window shows."""

from dataclasses import replace

import numpy as np
import pytest

from xsam_model.prompts.visual import draw_points, draw_scribble
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.windows import prompt_windows


@pytest.fixture
def sample():
    """A picture whose pixels are their places: a point on a large object, a box around a small one."""
    image = np.zeros((200, 200, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = np.arange(200)[:, None], np.arange(200)[None]
    masks = np.zeros((2, 200, 200), dtype=bool)
    masks[0, 20:180, 0:100] = True
    masks[1, 90:110, 140:180] = True
    point = draw_points([(50.0, 100.0)], (200, 200), 6)
    prompts = (point, masks[1])
    return TrainingSample(image=image, task="intseg", visual_prompts=prompts, masks=masks, labels=np.array([0, 1]))


def test_each_prompt_has_a_window_that_shows_it_and_its_object(sample):
    seen = set()
    for seed in range(12):
        point, box = prompt_windows(sample, 1.3, np.random.default_rng(seed))
        assert (point.is_box, box.is_box) == (False, True)
        assert 48 <= len(box.pixels) < 1.8 * 40
        assert box.share == 1
        assert (box.region != box.mask).sum() <= 0.2 * box.mask.sum()
        for window, mask in zip((point, box), sample.masks, strict=True):
            rows, columns = window.pixels[..., 0].astype(int), window.pixels[..., 1].astype(int)
            assert np.array_equal(window.mask, mask[rows, columns])
            assert window.share == pytest.approx(window.mask.sum() / mask.sum())
            assert (window.region & window.mask).any()
        # A point is as small in its window as points are in a whole image.
        rows, columns = (round(np.mean(np.flatnonzero(point.region.any(axis)))) for axis in (1, 0))
        assert point.mask[max(0, rows - 10) : rows + 10, max(0, columns - 10) : columns + 10].all()
        assert np.ptp(np.flatnonzero(point.region.any(0))) <= 2 * 10 * len(point.pixels) / 640 + 1
        seen.add(len(point.pixels))
    assert {120, 200} < seen


@pytest.mark.parametrize("radius", [8, 20], ids=["small", "large"])
def test_a_point_is_one_however_large_it_is_drawn(sample, radius):
    drawn = draw_points([(50.0, 100.0)], (200, 200), radius)
    one = replace(sample, visual_prompts=(drawn,), masks=sample.masks[:1], labels=np.array([0]))
    for seed in range(6):
        (window,) = prompt_windows(one, 1.3, np.random.default_rng(seed))
        assert np.ptp(np.flatnonzero(window.region.any(0))) <= 2 * 10 * len(window.pixels) / 640 + 1


def test_a_stroke_or_a_rough_mask_stays_what_it_is(sample):
    stroke = draw_scribble([(40.0, 90.0), (55.0, 110.0)], (200, 200), 2)
    one = replace(sample, visual_prompts=(stroke,), masks=sample.masks[:1], labels=np.array([0]))
    for seed in range(6):
        (window,) = prompt_windows(one, 1.3, np.random.default_rng(seed))
        assert window.region.sum() == stroke.sum()


def test_half_of_the_windows_are_seen_in_a_mirror(sample):
    mirrored = set()
    for seed in range(12):
        for window in prompt_windows(sample, 1.3, np.random.default_rng(seed)):
            mirrored.add(bool(window.pixels[0, 0, 1] > window.pixels[0, -1, 1]))
            rows, columns = window.pixels[..., 0].astype(int), window.pixels[..., 1].astype(int)
            assert np.array_equal(window.mask, sample.masks[int(window.is_box)][rows, columns])
    assert mirrored == {False, True}


def test_a_prompt_without_a_mask_of_its_own_gives_no_window(sample):
    nothing = replace(sample, masks=sample.masks[:1], labels=np.array([1]))
    assert prompt_windows(nothing, 1.3, np.random.default_rng(0)) == []
    both = replace(sample, task="vgdseg", labels=np.array([1, 1]))
    assert prompt_windows(both, 1.3, np.random.default_rng(0)) == []


def test_ignored_pixels_are_cut_too(sample):
    ignored = np.zeros((200, 200), dtype=bool)
    ignored[:, 170:] = True
    for seed in range(4):
        (_, box) = prompt_windows(replace(sample, ignore=ignored), 1.3, np.random.default_rng(seed))
        assert np.array_equal(box.ignored, box.pixels[..., 1] >= 170)
