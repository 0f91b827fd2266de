"""A convolutional mask encoder: EfficientNet-Lite's trunk (Tan & Le 2019), whose stages are a feature pyramid.

It has no batch normalization: the convolutions contain it, since pretrained weights are the reason for this encoder.
Shape letters: B images, C channels, S side of the canvas, H and W rows and columns of a map.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsam_model.configuration_xsam import XSamTrunkConfig

_IMAGES_AT_A_TIME = 4


class XSamTrunkConv(nn.Conv2d):
    """A convolution of odd kernel size, padded as TensorFlow pads, followed by ReLU6 unless it is linear.

    Its maps are turned by half a turn, and so is its kernel where it computes. At stride 2 and an even side TensorFlow
    pads a row less above than below, and torch the other way around.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, linear: bool = False
    ) -> None:
        self.linear = linear
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / stride, W / stride), rounded up; both turned by half a turn."""
        if self.kernel_size == (1, 1):
            # With the channels last it is one product of matrices, which torch does not see.
            weight = self.weight.flatten(1)
            features = F.linear(features.permute(0, 2, 3, 1), weight, self.bias).permute(0, 3, 1, 2)
        else:
            features = self._conv_forward(features, self.weight.flip(2, 3), self.bias)
        # In place: no gradient needs what a convolution returned, and maps of many channels are slow to write.
        return features if self.linear else F.relu6(features, inplace=True)


class XSamTrunkBlock(nn.Module):
    """An inverted bottleneck: widen, convolve each channel by itself, narrow; without squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = XSamTrunkConv(inputs, inner) if expansion > 1 else None
        self.depthwise = XSamTrunkConv(inner, inner, kernel, stride, inner)
        self.project = XSamTrunkConv(inner, outputs, linear=True)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / stride, W / stride)."""
        inner = features if self.expand is None else self.expand(features)
        inner = self.project(self.depthwise(inner))
        return features + inner if self.is_residual else inner


class XSamTrunk(nn.Module):
    """Stem and stages of the trunk; the classifier is left out.

    Args:
        config: its sizes.
        token_shape: channels and side of the hidden state that becomes language tokens, whose places have learned
            positions: unlike a ViT's tokens, a convolution's do not say where they are, and prompts do.
    """

    def __init__(self, config: XSamTrunkConfig, token_shape: tuple[int, int]) -> None:
        super().__init__()
        self.stem = XSamTrunkConv(3, config.stem_channels, 3, 2)
        self.stages = nn.ModuleList()
        inputs = config.stem_channels
        for outputs, depth, kernel, stride, expansion in zip(
            config.channels, config.depths, config.kernel_sizes, config.strides, config.expansions, strict=True
        ):
            blocks = [
                XSamTrunkBlock(outputs if place else inputs, outputs, kernel, 1 if place else stride, expansion)
                for place in range(depth)
            ]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
        channels, side = token_shape
        self.position_scale = config.position_scale
        self.token_positions = nn.Parameter(torch.zeros(side, side, channels))

    def initial_positions(self) -> Tensor:
        """Return sines and cosines of rows and columns, (side, side, C), up to a quarter turn from place to place.

        Smooth ones, of which the maximum over a prompt's points says how far it reaches.
        """
        side, _, channels = self.token_positions.shape
        turns = torch.linspace(0.25, side / 4, -(-channels // 4))
        angles = 2 * math.pi * turns * (torch.arange(side)[:, None] + 0.5) / side
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)
        places = [waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)]
        return self.position_scale * torch.cat(places, dim=2)[..., :channels]

    def encode(self, pixel_values: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Run the stages up to the deepest one asked for; frozen on a CPU, a few images at a time.

        Args:
            pixel_values: (B, 3, S, S), normalized.
            layers: hidden states to return: 0 is the stem's, i that of stage i.

        Returns:
            (B, H, W, C) for each of `layers`.
        """
        learns = torch.is_grad_enabled() and self.stem.weight.requires_grad
        if len(pixel_values) > _IMAGES_AT_A_TIME and pixel_values.device.type == "cpu" and not learns:
            # What one convolution writes is then still in the CPU's cache for the next.
            parts = [self.encode(part, layers) for part in pixel_values.split(_IMAGES_AT_A_TIME)]
            return {layer: torch.cat([part[layer] for part in parts]) for layer in layers}
        # Convolutions of few channels are faster with the channels last.
        hidden = self.stem(pixel_values.flip(2, 3).contiguous(memory_format=torch.channels_last))
        kept = {0: hidden}
        for index, stage in enumerate(self.stages[: max(layers)], start=1):
            hidden = stage(hidden)
            if index in layers:
                kept[index] = hidden
        return {index: kept[index].permute(0, 2, 3, 1).flip(1, 2) for index in layers}
