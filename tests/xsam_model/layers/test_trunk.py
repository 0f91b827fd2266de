"""The convolutional mask encoder: its numbers, its pyramid, and a whole model around it."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xsam_model import XSamConfig, XSamForSegmentation, XSamProcessor, XSamTrunkConfig
from xsam_model.layers.trunk import XSamTrunk
from xsam_model.testing import save_untrained, untrained_tiny_config
from xsam_model.training.pretrained_trunk import main as make_start
from xsam_model.training.pretrained_trunk import trunk_weights, with_trunk

SMALL = {"image_size": 64, "stem_channels": 8, "channels": [8, 12, 16, 24, 32], "depths": [1, 2, 1, 1, 2]}
SMALL |= {"kernel_sizes": [3, 3, 5, 3, 5], "strides": [1, 2, 2, 2, 2], "expansions": [1, 2, 2, 2, 2]}
SEGMENTOR = {"select_layers": [2, 3, 4, 5], "connector_scale_factors": [1, 1, 1, 1], "num_feature_levels": 4}


class Published(nn.Module):
    """EfficientNet-Lite as its authors write it: batch normalization after each convolution, TensorFlow's padding."""

    def __init__(self, config):
        super().__init__()
        self.config, self.state, self.layers = config, {}, []
        self.add("_conv_stem", "_bn0", 3, config.stem_channels, 3)
        inputs, number = config.stem_channels, 0
        for stage, depth in enumerate(config.depths):
            for _ in range(depth):
                name, inner = f"_blocks.{number}.", inputs * config.expansions[stage]
                if config.expansions[stage] > 1:
                    self.add(f"{name}_expand_conv", f"{name}_bn0", inputs, inner, 1)
                self.add(
                    f"{name}_depthwise_conv", f"{name}_bn1", inner, inner, config.kernel_sizes[stage], groups=inner
                )
                inputs, number = config.channels[stage], number + 1
                self.add(f"{name}_project_conv", f"{name}_bn2", inner, inputs, 1)

    def add(self, name, norm, inputs, outputs, kernel, groups=1):
        self.state[f"{name}.weight"] = torch.randn(outputs, inputs // groups, kernel, kernel) / kernel
        for key, value in {"weight": 1.5, "bias": 0.2, "running_mean": 0.1, "running_var": 0.8}.items():
            self.state[f"{norm}.{key}"] = value * (0.5 + torch.rand(outputs))

    def layer(self, x, name, norm, stride=1, linear=False):
        weight = self.state[f"{name}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)
        values = [self.state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *values, eps=1e-3)
        return x if linear else x.clamp(0, 6)

    def forward(self, x):
        x, number, config = self.layer(x, "_conv_stem", "_bn0", 2), 0, self.config
        maps = [x]
        for stage, depth in enumerate(config.depths):
            for place in range(depth):
                name, before = f"_blocks.{number}.", x
                stride = 1 if place else config.strides[stage]
                if config.expansions[stage] > 1:
                    x = self.layer(x, f"{name}_expand_conv", f"{name}_bn0")
                x = self.layer(x, f"{name}_depthwise_conv", f"{name}_bn1", stride)
                x = self.layer(x, f"{name}_project_conv", f"{name}_bn2", linear=True)
                x = x + before if stride == 1 and x.shape == before.shape else x
                number += 1
            maps.append(x)
        return maps


def trunk_config(**changes):
    config = untrained_tiny_config()
    segmentor = {**config.segmentor_config.to_dict(), **SEGMENTOR, **changes.pop("segmentor_config", {})}
    encoder = {"model_type": "xsam_trunk", **SMALL, **changes.pop("mask_encoder_config", {})}
    fields = {"mask_encoder_select_layer": 4, "token_downsample": 1, **changes}
    return untrained_tiny_config(mask_encoder_config=encoder, segmentor_config=segmentor, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("trunk") / "model", config=trunk_config())


@pytest.fixture(scope="module")
def model(folder):
    return XSamForSegmentation.from_pretrained(folder).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", [64, 48])
def test_converted_weights_compute_what_the_published_network_computes(side):
    torch.manual_seed(0)
    config = XSamTrunkConfig(**{**SMALL, "image_size": side})
    published = Published(config)
    published.state = {name: value.double() for name, value in published.state.items()}
    trunk = XSamTrunk(config, (24, 4)).double()
    missing, unexpected = trunk.load_state_dict(trunk_weights(published.state, config), strict=False)
    assert (missing, unexpected) == (["token_positions"], [])
    pixels = torch.randn(3, 3, side, side, dtype=torch.float64)
    maps = trunk.encode(pixels, set(range(6)))
    for layer, expected in enumerate(published(pixels)):
        torch.testing.assert_close(maps[layer].permute(0, 3, 1, 2), expected)
        assert maps[layer].shape[1] == math.ceil(side / config.stride_at(layer))


def test_the_defaults_are_the_sizes_of_efficientnet_lite0():
    with torch.device("meta"):
        trunk = XSamTrunk(XSamTrunkConfig(), (112, 14))
    # Of the published 4,652,008 the head and the classifier have 1,693,160; and a scale and a shift for each of 19,728
    # channels have become one bias.
    assert sum(one.numel() for name, one in trunk.named_parameters() if name != "token_positions") == 2_939_120


@torch.no_grad()
def test_a_model_around_it_answers_every_prompt_and_a_batch_equals_one_by_one(folder, model):
    processor = XSamProcessor.from_pretrained(folder)
    images = [np.full((50, 60, 3), value, dtype=np.uint8) for value in (30, 120, 200)]
    inputs = processor(images, task="ovseg", conditions=[["dog", "cat"]] * 3)
    outputs = model(**inputs.for_model())
    features = outputs.image_features
    assert features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1] == model.config.num_image_tokens
    assert [level.shape[-1] for level in features.multi_scale_features] == [2, 4, 8]
    assert outputs.mask_logits.shape[-2:] == features.mask_features.shape[-2:] == (16, 16)
    for row, image in enumerate(images):
        alone = model(**processor([image], task="ovseg", conditions=[["dog", "cat"]]).for_model())
        torch.testing.assert_close(outputs.mask_logits[row], alone.mask_logits[0], atol=5e-4, rtol=0)
    spots = np.zeros((2, 50, 60), dtype=bool)
    spots[0, 5:10, 5:10] = spots[1, 30:35, 40:45] = True
    answers = [
        model(**processor(images[:1], task="intseg", visual_prompts=[[spot]]).for_model()).seg_embeddings
        for spot in spots
    ]
    # On a picture of one colour only the positions of tokens tell two points apart.
    assert (answers[0] - answers[1]).abs().max() > 1e-4


def test_a_model_around_it_is_saved_and_loaded_whole(folder, model, tmp_path):
    model.save_pretrained(tmp_path)
    again = XSamForSegmentation.from_pretrained(tmp_path)
    assert isinstance(again.config.mask_encoder_config, XSamTrunkConfig)
    assert again.config.to_dict()["mask_encoder_config"] == model.config.to_dict()["mask_encoder_config"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@torch.no_grad()
def test_a_canvas_need_not_be_a_multiple_of_the_last_stride():
    torch.manual_seed(0)
    whole = XSamForSegmentation(trunk_config(mask_encoder_config={"image_size": 48})).eval()
    features = whole.encode_images(torch.zeros(1, 3, 112, 112), torch.zeros(1, 3, 48, 48))
    assert [level.shape[-1] for level in features.multi_scale_features] == [2, 3, 6]
    assert features.mask_features.shape[-1] == 12
    assert features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1] == whole.config.num_image_tokens


def test_positions_begin_smooth_and_tell_all_places_apart(model):
    positions = model.segmentor.encoder.token_positions.detach()
    places = positions.flatten(0, 1)
    apart = torch.cdist(places, places) + 1e9 * torch.eye(len(places))
    assert apart.min() > 1
    across, down = (positions.diff(dim=axis).norm(dim=2) for axis in (0, 1))
    opposite = (positions[0, 0] - positions[-1, -1]).norm()
    assert max(across.max(), down.max()) < opposite


@torch.no_grad()
def test_random_weights_neither_fade_nor_explode(model):
    maps = model.segmentor.encode(torch.randn(2, 3, 64, 64), {0, 5})
    assert 0.05 < maps[5].std() / maps[0].std() < 20


def test_another_model_gets_a_pretrained_trunk_and_keeps_the_rest(tmp_path):
    old = save_untrained(tmp_path / "old")
    torch.manual_seed(0)
    encoder = XSamTrunkConfig(image_size=64, channels=[8] * 7)
    kept = with_trunk(old, tmp_path / "new", Published(encoder).state, "a notice\n", trunk=encoder)
    before, after = (XSamForSegmentation.from_pretrained(tmp_path / name) for name in ("old", "new"))
    assert kept > 50
    assert torch.equal(before.get_input_embeddings().weight, after.get_input_embeddings().weight)
    assert (tmp_path / "new" / "NOTICE").read_text() == "a notice\n"
    pictures = XSamProcessor.from_pretrained(tmp_path / "new").image_processor
    assert (pictures.segmentor_size, pictures.segmentor_mean) == (64, (127 / 255,) * 3)
    assert pictures.vision_size == XSamProcessor.from_pretrained(old).image_processor.vision_size
    assert after.segmentor.encoder.stem.bias.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"--output": "old"}, "is not empty, and nothing is ever overwritten"),
        ({"--side": "100"}, "image_size must be a multiple of half the last stage's stride, 16; got 100"),
        ({"--model": "none"}, "holds no config.json: give the folder of a model"),
    ],
)
def test_nothing_is_fetched_for_a_model_that_cannot_be_written(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    options = {"--model": "old", "--output": "new", **arguments}
    assert make_start([part for option in options.items() for part in option]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask_encoder_config": {"strides": [1, 2, 3, 2, 2]}}, "strides must be 1 or 2"),
        ({"mask_encoder_config": {"kernel_sizes": [3, 4, 5, 3, 5]}}, "kernel sizes odd"),
        ({"mask_encoder_config": {"depths": [1, 2]}}, "depths needs one entry for each of 5 stages"),
        ({"mask_encoder_config": {"depths": [1, 2, 0, 1, 2]}}, "must be 1 or more"),
        (
            {"mask_encoder_config": {"image_size": 100}},
            "image_size must be a multiple of half the last stage's stride, 16",
        ),
        ({"segmentor_config": {"select_layers": [1, 2, 3, 4]}}, r"have strides \[2, 4, 8, 16\] in this trunk"),
        ({"segmentor_config": {"select_layers": [2, 3, 4, 9]}}, r"select_layers: \[9\] are not among 0 .. 5"),
        ({"segmentor_config": {"connector_scale_factors": [4, 2, 1, 0.5]}}, "connector_scale_factors must be 1"),
        ({"mask_encoder_select_layer": 6}, "mask_encoder_select_layer must be in -6 .. 5"),
        ({"mask_encoder_select_layer": -7}, "mask_encoder_select_layer must be in -6 .. 5"),
    ],
)
def test_a_trunk_that_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        trunk_config(**fields)


def test_an_unknown_encoder_is_refused_by_name():
    with pytest.raises((ValueError, KeyError), match="no_such_encoder"):
        XSamConfig(mask_encoder_config={"model_type": "no_such_encoder"})
