"""What of the network's surroundings is called in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.post_processing.mask_geometry import MaskGeometry
from xsam_model.prompts.visual import draw_region


def prepare(size: tuple[int, int]) -> str:
    """Prepare an image of this width and height for the model; the shapes of its inputs."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    inputs = XSamImageProcessor().preprocess([pixels], return_tensors="np")
    return f"{inputs['pixel_values'].shape} {inputs['segmentor_pixel_values'].shape}"


def draw(kind: str, coordinates: Sequence[float], size_hw: tuple[int, int]) -> int:
    """Draw a region; its pixels."""
    return int(np.count_nonzero(draw_region(kind, coordinates, size_hw)))


def enlarge_masks(sizes: Sequence[tuple[int, int]]) -> int:
    """Enlarge a small mask to images of these widths and heights; how many masks there were."""
    logits = torch.full((1, 256, 256), -4.0)
    logits[0, 2:4, 2:4] = 4.0
    processor, found = XSamImageProcessor(), 0
    for width, height in sizes:
        size = (height, width)
        geometry = MaskGeometry(canvas_size=1024, scaled_size=processor.scaled_size(size), original_size=size)
        found += sum(bool(mask.score > 0) for mask in geometry.iter_windowed(logits, [0]))
    return found
