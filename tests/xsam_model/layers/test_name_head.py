"""The classifier that helps to name masks: what it changes in the answer to names, and all that it leaves alone."""

import math

import numpy as np
import pytest
import torch

from tests.xsam_model.layers.test_trunk import trunk_config
from xsam_model import XSamConfig, XSamForSegmentation, XSamProcessor, XSamSegmenter
from xsam_model.configuration_xsam import XSamNameHeadConfig
from xsam_model.layers.name_head import XSamNameHead, gather_names
from xsam_model.testing import save_untrained

SIZES = {"layers": [5], "feature_size": 12, "num_classes": 4, "token_size": 8, "hidden_size": 8}
IMAGE = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = trunk_config(name_head_config=SIZES)
    return save_untrained(tmp_path_factory.mktemp("named") / "model", config=config)


@pytest.fixture(scope="module")
def head():
    return XSamNameHead(XSamNameHeadConfig(**SIZES), 6, 50)


def asked(folder, head, task="ovseg", **changes):
    """Class probabilities of one image under a head that was changed in place."""
    segmenter = XSamSegmenter.from_pretrained(folder)
    head(segmenter.model.name_head)
    arguments = {"conditions": [["dog", "cat", "red panda"]]} | changes
    inputs = segmenter.processor([IMAGE], task=task, **arguments).for_model()
    with torch.inference_mode():
        return [
            segmenter.model(**inputs, conditions_are_names=are_names).class_logits[0].softmax(-1)
            for are_names in (False, True)
        ]


def says(place):
    """Return a change of a head: every mask shows class 3, and of all names only one with tokens like this is of it."""

    def change(head):
        torch.nn.init.zeros_(head.classes.weight)
        head.classes.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0]))
        for one in (head.reader.pairs, head.reader.longer, head.reader.classes):
            torch.nn.init.zeros_(one.weight)
            torch.nn.init.zeros_(one.bias)
        torch.nn.init.zeros_(head.reader.tokens.weight)
        head.reader.tokens.weight[place + 1, 0] = 1
        head.reader.pairs.weight[0, 0, 1] = 1
        head.reader.classes.weight[3, 0] = 9

    return change


def test_a_name_that_fits_what_the_classifier_sees_wins(folder):
    dog = XSamProcessor.from_pretrained(folder).tokenizer.encode("g", add_special_tokens=False)[0]
    before, after = asked(folder, torch.no_grad()(says(dog)))
    torch.testing.assert_close(after.sum(-1), torch.ones(len(after)))
    config = XSamNameHeadConfig()
    # Beside what is left of the network's own opinion, every query hears the same of a dog and a cat.
    gained = after[:, 0] / after[:, 1] / (before[:, 0] / before[:, 1]) ** config.network_weight
    torch.testing.assert_close(gained, gained[:1].expand_as(gained), rtol=1e-3, atol=0)
    assert gained[0] > 1.5
    neither = after[:, 1] / after[:, 2] / (before[:, 1] / before[:, 2]) ** config.network_weight
    torch.testing.assert_close(neither, torch.ones_like(neither), rtol=1e-3, atol=0)


def test_what_it_says_nothing_of_keeps_its_order(folder):
    def nothing(head):
        torch.nn.init.zeros_(head.reader.classes.weight)
        torch.nn.init.zeros_(head.reader.classes.bias)

    before, after = asked(folder, torch.no_grad()(nothing))
    assert torch.equal(before[:, :3].argsort(-1), after[:, :3].argsort(-1))


def test_padding_and_the_probability_of_any_name_stay(head):
    logits = torch.tensor([[[1.0, 2.0, -1e9, 0.5]]])
    real = torch.tensor([[True, True, False, True]])
    weighed = head.weigh(logits, torch.zeros(1, 1, 3), real)
    assert weighed[0, 0, 2] == -1e9
    found, told = logits.softmax(-1)[0, 0], weighed.softmax(-1)[0, 0]
    share = 2 / (2 + math.exp(head.config.no_name_logit))
    assert told[:2].sum() <= found[:2].sum()
    assert told[:2].sum() == pytest.approx(float(found[:2].sum()) * share, abs=0.02)
    alone = head.weigh(logits[..., [0, 3]], torch.zeros(1, 1, 1), real[:, [0, 3]])
    torch.testing.assert_close(alone.softmax(-1).sum(-1), torch.ones(1, 1))


def test_extreme_logits_stay_finite(head):
    logits = torch.tensor([[[500.0, -500.0, 500.0], [-500.0, -500.0, 500.0], [500.0, 500.0, -500.0]]])
    weighed = head.weigh(logits, torch.full((1, 3, 2), -13.8), torch.ones(1, 3, dtype=torch.bool))
    assert torch.isfinite(weighed).all()


def test_evidence_looks_inside_the_mask_alone(head):
    looks = torch.zeros(1, 2, 2, 12)
    looks[0, 0, 0, 0] = 6.0
    with torch.no_grad():
        head.classes.weight.zero_()
        head.classes.bias.zero_()
        head.classes.weight[2, 0] = 2
    masks = torch.full((1, 2, 8, 8), -20.0)
    masks[0, 0, :4, :4], masks[0, 1, 4:, 4:] = 20.0, 20.0
    names = torch.tensor([[[0.0, 0, 9, 0], [0.0, 0, 0, 0]]])
    evidence = head.evidence(looks, masks, names).detach()
    assert evidence[0, 0, 0] == pytest.approx(math.log(4), abs=0.01)
    torch.testing.assert_close(evidence[0, 1], torch.zeros(2), atol=0.01, rtol=0)
    assert evidence[0, 0, 1] == pytest.approx(0, abs=1e-5)


def test_names_are_gathered_once_each_without_their_marks():
    ids = torch.tensor([[1, 90, 5, 6, 91, 90, 7, 91, 2, 0], [1, 90, 7, 91, -200, 2, 0, 0, 0, 0]])
    conds = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, 1, -1, -1], [-1, 0, 0, 0, -1, -1, -1, -1, -1, -1]])
    names, which = gather_names(ids, conds, [90, 91])
    rows = [[row[row > 0].tolist() for row in names[places]] for places in which]
    assert rows == [[[6, 7], [8]], [[8], []]]
    assert len(names) == 3


def test_padding_of_longer_names_does_not_change_a_name(head):
    names = torch.tensor([[3, 4, 0, 0, 0], [3, 4, 5, 6, 7]])
    torch.testing.assert_close(head.reader(names)[0], head.reader(names[:1, :2])[0])


def test_the_segmenter_asks_it_for_categories_and_for_nothing_else(folder):
    segmenter = XSamSegmenter.from_pretrained(folder)
    plain = XSamSegmenter.from_pretrained(folder)
    plain.model.name_head.config.evidence_weight = 0.0
    plain.model.name_head.config.no_name_logit = -1e4
    plain.model.name_head.config.network_weight = 1.0
    spot = np.zeros((50, 60), dtype=bool)
    spot[10:20, 10:20] = True

    def scores(one, task, **prompts):
        return one.segment([IMAGE], task=task, threshold=0.0, **prompts)[0].segmentation.scores

    names = {"conditions": [["dog", "cat"]]}
    assert not torch.allclose(scores(segmenter, "ovseg", **names), scores(plain, "ovseg", **names))
    assert torch.equal(scores(segmenter, "refseg", **names), scores(plain, "refseg", **names))
    spots = {"visual_prompts": [[spot]]}
    assert torch.equal(scores(segmenter, "vgdseg", **spots), scores(plain, "vgdseg", **spots))


def test_a_model_without_one_has_no_weight_of_it_and_answers_as_before():
    torch.manual_seed(0)
    model = XSamForSegmentation(trunk_config()).eval()
    assert not [name for name in model.state_dict() if "name_head" in name]
    assert model.config.to_dict()["name_head_config"] is None


def test_it_is_saved_and_loaded_with_the_model(folder, tmp_path):
    model = XSamForSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = XSamForSegmentation.from_pretrained(tmp_path)
    assert again.config.name_head_config.layers == [5]
    assert torch.equal(again.name_head.classes.weight, model.name_head.classes.weight)


@pytest.mark.parametrize("layers", [[3, 5], [9], []])
def test_layers_of_several_sizes_are_refused(layers):
    with pytest.raises(ValueError, match=r"must be of one stride among 0 \.\. 5"):
        trunk_config(name_head_config={**SIZES, "layers": layers})


def test_it_needs_a_trunk():
    with pytest.raises(ValueError, match="goes with a convolutional trunk"):
        XSamConfig(name_head_config=SIZES)
