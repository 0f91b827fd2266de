"""The refiner: reads a visual prompt as a map beside the mask encoder's maps, and draws the mask that it stands for.

The language model sees a prompt as one token, which says what it shows and roughly where. Here its place stays a map,
as in click-based interactive segmentation (RITM, arXiv 2102.06583). Shape letters: R prompts, each with a canvas of its
own, S side of the canvas, C channels, H and W rows and columns of a map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsam_model.configuration_xsam import REFINER_GROUPS, XSamConfig

# Maps of `prompt_maps`.
_PROMPT_CHANNELS = 5
# What a prompt shows is compared with every place, in so many ways of so many channels.
_HEADS, _HEAD_CHANNELS = 8, 16
# Cosines are in [-1, 1], the normalized features beside them wider.
_COSINE_SCALE = 2.0
# How a new refiner scales the encoder's maps, which learns. Those of a convolutional trunk are several times as wide as
# the other inputs: unscaled, each update of their weights would move what is drawn as many times as far as the others'.
_MAP_SCALE = 0.3
_QUALITY_CHANNELS = 64


def prompt_maps(regions: Tensor, is_box: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Draw visual prompts at the resolution of a map.

    Args:
        regions: (R, 1, S, S) in [0, 1], 1 inside the prompt.
        is_box: (R,) 1 for boxes, 0 for other prompts.
        size_hw: rows and columns of the map.

    Returns:
        (R, 5, H, W): share of each place that a box covers; whether another prompt touches it; rows and columns from
        the prompt's center, 2 being the canvas; whether the prompt is a box.
    """
    boxes = is_box[:, None, None, None].to(regions.dtype)
    inside = F.adaptive_avg_pool2d(regions, size_hw) * boxes
    touched = F.adaptive_max_pool2d(regions, size_hw) * (1 - boxes)
    offsets = []
    for axis, places in ((2, size_hw[0]), (3, size_hw[1])):
        shares = regions.sum(5 - axis)[:, 0]
        center = (shares * _middles(shares.shape[1], regions)).sum(1) / shares.sum(1).clamp(min=1e-6)
        from_center = 2 * (_middles(places, regions) - center[:, None])
        offsets.append(from_center[:, None, :, None] if axis == 2 else from_center[:, None, None, :])
    maps = [inside, touched, *offsets, boxes]
    return torch.cat([one.expand(-1, -1, *size_hw) for one in maps], dim=1)


def _middles(places: int, like: Tensor) -> Tensor:
    return (torch.arange(places, device=like.device, dtype=like.dtype) + 0.5) / places


class XSamRefinerLevel(nn.Module):
    """Joins all that is known at one resolution: two convolutions with group normalization, the second residual."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix, self.mix_norm = nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(REFINER_GROUPS, outputs)
        self.conv, self.conv_norm = nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(REFINER_GROUPS, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(R, inputs, H, W) -> (R, outputs, H, W)."""
        mixed = F.relu(self.mix_norm(self.mix(features)))
        return mixed + F.relu(self.conv_norm(self.conv(mixed)))


class XSamRefiner(nn.Module):
    """Goes from the coarsest map of the mask encoder to the finest, with the prompt drawn at each resolution.

    At the resolutions between, each place is also compared with what the prompt covers.

    Args:
        config: `refiner_dims` are the channels at each map of `segmentor_config.used_layers`, finest first.
    """

    def __init__(self, config: XSamConfig) -> None:
        super().__init__()
        dims = tuple(config.refiner_dims or ())
        channels = [config.mask_encoder_map(layer)[0] for layer in config.segmentor_config.used_layers]
        between, width = channels[1:-1], _HEADS * _HEAD_CHANNELS
        heads = [0, *(_HEADS for _ in between), 0]
        inputs = [sum(parts) + _PROMPT_CHANNELS for parts in zip(channels, heads, (*dims[1:], 0), strict=True)]
        self.levels = nn.ModuleList(XSamRefinerLevel(*sizes) for sizes in zip(inputs, dims, strict=True))
        self.scales = nn.Parameter(torch.full((len(dims),), _MAP_SCALE))
        self.queries = nn.ModuleList(nn.Linear(count, width) for count in between)
        self.keys = nn.ModuleList(nn.Conv2d(count, width, 1) for count in between)
        self.out = nn.Conv2d(dims[0], 1, 3, padding=1)
        self.quality = nn.Sequential(
            nn.Linear(dims[-1] + 2 * dims[1] + 3, _QUALITY_CHANNELS), nn.ReLU(), nn.Linear(_QUALITY_CHANNELS, 1)
        )

    def forward(self, pyramid: list[Tensor], regions: Tensor, is_box: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a mask for each prompt, and say how good it is.

        Args:
            pyramid: (R, C_i, H_i, W_i) hidden states of the mask encoder, finest first.
            regions: (R, S, S) bool, the prompts on the canvas.
            is_box: (R,) bool.

        Returns:
            Mask logits (R, H_0, W_0), positive inside, and logits (R,) of the masks' expected IoU with the whole object
            that is meant, of which the canvas may show a part.
        """
        # Centers are not exact enough in half precision.
        drawn = regions[:, None].float()
        joined: list[Tensor] = []
        for number in reversed(range(len(pyramid))):
            features = pyramid[number]
            size_hw = (features.shape[2], features.shape[3])
            parts = [features * self.scales[number], prompt_maps(drawn, is_box, size_hw).to(features.dtype)]
            if 0 < number < len(pyramid) - 1:
                parts.append(self._likeness(number - 1, features, drawn))
            if joined:
                parts.append(F.interpolate(joined[-1], size=size_hw, mode="bilinear", align_corners=False))
            joined.append(self.levels[number](torch.cat(parts, dim=1)))
        logits = self.out(joined[-1])[:, 0]
        return logits, self._rate(logits.detach().sigmoid(), coarse=joined[0], fine=joined[-2])

    def _likeness(self, number: int, features: Tensor, drawn: Tensor) -> Tensor:
        """Return cosines of each place and the mean of the places that a prompt covers, (R, heads, H, W)."""
        shares = F.adaptive_avg_pool2d(drawn, (features.shape[2], features.shape[3])).to(features.dtype)
        shown = (features * shares).sum((2, 3)) / shares.sum((2, 3)).clamp(min=1e-6)
        query = F.normalize(self.queries[number](shown).unflatten(1, (_HEADS, _HEAD_CHANNELS)), dim=2)
        keys = F.normalize(self.keys[number](features).unflatten(1, (_HEADS, _HEAD_CHANNELS)), dim=2)
        return _COSINE_SCALE * (query[..., None, None] * keys).sum(2)

    def _rate(self, masks: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
        """Return the logit of each mask's quality; masks are probabilities (R, H, W)."""
        weights = F.adaptive_avg_pool2d(masks[:, None], (fine.shape[2], fine.shape[3]))
        inside, outside = (
            (fine * part).mean((2, 3)) / part.mean((2, 3)).clamp(min=1e-3) for part in (weights, 1 - weights)
        )
        found = (masks > 0.5).to(masks.dtype)
        sure = ((2 * masks - 1) * found).sum((1, 2)) / found.sum((1, 2)).clamp(min=1)
        edges = torch.cat([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], dim=1).mean(1)
        facts = torch.stack([found.mean((1, 2)), sure, edges], dim=1)
        return self.quality(torch.cat([coarse.mean((2, 3)), inside, outside, facts], dim=1))[:, 0]
