"""Writes pseudo-labels of photographs as COCO instances: a picture for each window, a mask for each thing in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xsam_model.conversion.new_output import whole_folder
from xsam_model.training.pseudo_labels.salience import Pixels, Salience, SalientWindow, salient_windows
from xsam_model.training.scenes.asked.prompts import bounding_box
from xsam_model.training.scenes.export import TRUTH_FILE, run_lengths

# What is outlined has no name: the networks know none.
CATEGORY = "object"
_MOST_PIXELS = 512
IMAGES = "images"


def write_pseudo_labels(
    photographs: Iterable[tuple[str, Pixels]],
    networks: Sequence[Salience],
    output: Path,
    *,
    least_agreement: float = 0.85,
) -> tuple[int, int]:
    """Label photographs.

    Args:
        photographs: names, which become names of files, and pixels, uint8 (H, W, 3) RGB of any size.
        networks: of which all have to see the same, the fastest first.
        output: folder to write, which must not exist: `images/` and `instances.json`, for the readers of COCO
            (`datasets.coco:visual_prompts`). Each image is a window of a photograph and names it.
        least_agreement: least IoU of the networks' masks.

    Returns:
        Numbers of windows and of masks.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with whole_folder(output) as beside:
        (beside / IMAGES).mkdir()
        for name, pixels in photographs:
            small = _shrunk(pixels)
            for place, window in enumerate(salient_windows(small, networks, least_agreement)):
                left, top, right, bottom = window.box
                image = {"id": len(images) + 1, "file_name": f"{name}-{place}.png", "width": right - left}
                image |= {"height": bottom - top, "photograph": name, "window": list(window.box)}
                Image.fromarray(small[top:bottom, left:right]).save(beside / IMAGES / str(image["file_name"]))
                annotations += _annotations(window, image, len(annotations) + 1)
                images.append(image)
        document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": CATEGORY}]}
        (beside / TRUTH_FILE).write_text(json.dumps(document) + "\n", encoding="utf-8")
    return len(images), len(annotations)


def _shrunk(pixels: Pixels) -> Pixels:
    """Scale a photograph down to at most 512 pixels on its longer side."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _annotations(window: SalientWindow, image: dict[str, Any], first: int) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "image_id": image["id"],
            "category_id": 1,
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "area": int(mask.sum()),
            "bbox": list(bounding_box(mask)),
            "iscrowd": 0,
            "agreement": round(window.agreement, 3),
        }
        for number, mask in enumerate(window.masks, first)
    ]
