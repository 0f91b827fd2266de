"""The sheet of failures shows the scenes that went worst, worst first."""

import numpy as np
import torch

from actors.scenes import failures
from actors.scenes.failures import draw_failures, main
from actors.scenes.samples import SceneTest
from xsam_model import InstanceSegmentation, XSamResult
from xsam_model.testing import save_untrained
from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.scene import SceneConfig


class Forgetful:
    """Finds all objects of a scene but those of one scene."""

    def __init__(self, samples, missed):
        self.samples, self.missed = {one.image.tobytes(): (number, one) for number, one in enumerate(samples)}, missed

    def segment(self, images, **asked):
        return [self.answer(*self.samples[image.tobytes()]) for image in images]

    def answer(self, number, sample):
        count = 0 if number == self.missed else len(sample.masks)
        ones = torch.ones(count)
        masks, labels = (torch.from_numpy(array[:count]) for array in (sample.masks, sample.labels))
        return XSamResult(segmentation=InstanceSegmentation(ones, ones, labels, torch.arange(count), masks))


def test_the_scene_without_masks_comes_first(monkeypatch):
    test = SceneTest(
        assets=SceneAssets.builtin(), count=5, scene=SceneConfig(side_pixels=64), num_names=4, batch_size=2
    )
    captions = []

    def sheet(pictures, columns):
        captions.extend(caption for caption, _, _ in pictures)
        return pictures[0][1]

    monkeypatch.setattr(failures, "contact_sheet", sheet)
    samples = test.samples("ovseg", num_names=4)
    first = draw_failures(Forgetful(samples, missed=3), test, number=2)
    assert captions == ["truth", "found: 0 % of the objects", "truth", "found: 100 % of the objects"]
    large = samples[3].image.repeat(3, 0).repeat(3, 1)
    untouched = ~samples[3].masks.any(0).repeat(3, 0).repeat(3, 1)
    same = (np.asarray(first) == large).all(2)[untouched]
    assert same.mean() > 0.8  # all but the words


def test_the_command_writes_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(SceneAssets, "load", lambda folder: SceneAssets.builtin())
    folder, out = save_untrained(tmp_path / "model"), tmp_path / "sheet.png"
    main(["--model", str(folder), "--count", "2", "--side", "64", "--output", str(out)])
    assert out.stat().st_size > 1000
