"""What every engine does: xsam-tiny, asked 16 names of JPEG files, eight at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "examples" / "scenes"
BATCH = 8
WORKERS = 2
FIRST = "first-image"
"""File beside an engine's output, touched when the first images are labeled."""


def names() -> list[str]:
    """Return the names that are asked."""
    return [one["name"] for one in json.loads((SCENES / "instances.json").read_text())["categories"]][:16]


class Labeler:
    """A loaded model.

    Args:
        output: folder of the engine's output.
    """

    def __init__(self, output: str) -> None:
        from actors.predictor.config import PredictorConfig
        from actors.predictor.predictor import XSamPredictor
        from flows.prompts import named_prompts

        self._predictor = XSamPredictor(PredictorConfig(device="cpu"))
        self._prompts = tuple(named_prompts("ovseg", names()))
        self._first = Path(output, FIRST)

    def label(self, files: Sequence[str], pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
        """Label pictures.

        Returns:
            A row for each mask: ``file``, ``category``, ``score``, ``height``, ``width`` and ``counts``, the mask's
            run-length encoding as in COCO.
        """
        import numpy as np

        from pipelines.types import Image as Picture
        from pipelines.types import ImageRef

        images = [
            Picture(ref=ImageRef(image_id=Path(file).name, uri=file), pixels=np.asarray(picture.convert("RGB")))
            for file, picture in zip(files, pictures, strict=True)
        ]
        answers = self._predictor.predict(images, [self._prompts] * len(images))
        if not self._first.exists():
            self._first.write_text(str(time.time()))
        return [
            {
                "file": image.ref.image_id,
                "category": mask.prompt.category_name,
                "score": mask.score,
                "height": image.size_hw[0],
                "width": image.size_hw[1],
                "counts": mask.segmentation.counts,
            }
            for image, answer in zip(images, answers, strict=True)
            for mask in answer.masks
        ]


def files_in(folder: str) -> list[str]:
    """Return the JPEG files of a folder, in order."""
    return sorted(str(path) for path in Path(folder).glob("*.jpg"))
