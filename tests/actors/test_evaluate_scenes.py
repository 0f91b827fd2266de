"""Testing on scenes: who answers with the truth is perfect, who answers with nothing is not."""

import json

import numpy as np
import pytest
import torch

from actors.evaluate_scenes import PROMPT_KINDS, SceneTest, evaluate_scenes, main
from xsam_model import InstanceSegmentation, PhraseSegmentation, XSamResult
from xsam_model.training.scene_assets import SceneAssets
from xsam_model.training.scenes import SceneConfig
from xsam_model.untrained import save_untrained


class Oracle:
    """Knows every sample of a test, and answers with its truth, or with `spoil` of it."""

    def __init__(self, test, spoil=lambda masks: masks):
        self.samples, self.spoil = {}, spoil
        draw = test.samples

        def remember(task, **asked):
            drawn = draw(task, **asked)
            self.samples |= {(task, self.key(sample.image)): sample for sample in drawn}
            return drawn

        object.__setattr__(test, "samples", remember)

    @staticmethod
    def key(image):
        return image.tobytes()

    def segment(self, images, *, task, conditions=None, visual_prompts=None, threshold=0.5, answer=None):
        return [self.answer(self.samples[task, self.key(image)], task) for image in images]

    def answer(self, sample, task):
        masks = self.spoil(torch.from_numpy(sample.masks))
        ones = torch.ones(len(masks))
        if task in ("ovseg", "vgdseg"):
            found = InstanceSegmentation(ones, ones, torch.from_numpy(sample.labels), torch.arange(len(masks)), masks)
        else:
            found = PhraseSegmentation(ones, ones, ones, torch.arange(len(masks)), masks)
        return XSamResult(segmentation=found)


def scene_test(**fields):
    return SceneTest(assets=SceneAssets.builtin(), scene=SceneConfig(side_pixels=64), count=12, num_names=4, **fields)


def test_the_truth_scores_full_marks_and_its_opposite_none():
    test = scene_test()
    figures = evaluate_scenes(Oracle(test), test, say=lambda line: None)
    shares = {name: value for name, value in figures.items() if not name.endswith("_count")}
    assert set(shares) >= {"ov_4_ap50", "ov_all_ap50", "ref_ciou", "int_point_miou", "gcg_given_miou"}
    assert {f"vgd_{kind}_ap50" for kind in PROMPT_KINDS} <= set(shares)
    assert all(value == pytest.approx(100) for value in shares.values() if not np.isnan(value)), shares
    test = scene_test()
    wrong = evaluate_scenes(Oracle(test, spoil=torch.logical_not), test, say=lambda line: None)
    assert all(value < 5 for name, value in wrong.items() if not name.endswith("_count") and not np.isnan(value)), wrong


def test_the_same_seed_gives_the_same_scenes_and_another_gives_others():
    one, again, other = (scene_test(seed=seed).samples("refseg") for seed in (1, 1, 2))
    assert [sample.image.tobytes() for sample in one] == [sample.image.tobytes() for sample in again]
    assert not {sample.image.tobytes() for sample in one} & {sample.image.tobytes() for sample in other}


def test_the_command_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SceneAssets, "load", lambda folder: SceneAssets.builtin())
    folder, out = save_untrained(tmp_path / "model"), tmp_path / "figures.json"
    main(["--model", str(folder), "--count", "2", "--side", "64", "--json", str(out)])
    assert "ov_16_ap50" in capsys.readouterr().out
    assert set(json.loads(out.read_text())) >= {"ov_16_ap50", "ref_ciou"}
