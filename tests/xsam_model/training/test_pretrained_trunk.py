"""A model gets a pretrained trunk: the published weights, computed as published, and whose they are."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from xsam_model import XSamForSegmentation, XSamProcessor, XSamTrunkConfig
from xsam_model.layers.trunk import XSamTrunk
from xsam_model.testing import save_untrained
from xsam_model.training.pretrained_trunk import main as make_start
from xsam_model.training.pretrained_trunk import trunk_weights, with_trunk

SMALL = {"image_size": 64, "stem_channels": 8, "channels": [8, 12, 16, 24, 32], "depths": [1, 2, 1, 1, 2]}
SMALL |= {"kernel_sizes": [3, 3, 5, 3, 5], "strides": [1, 2, 2, 2, 2], "expansions": [1, 2, 2, 2, 2]}


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
