"""Draw the scenes that a model labels worst, each beside its ground truth, on one sheet.

python -m actors.scenes.failures --model DIR --assets DIR --seed 1 --count 160 --core --output failures.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from actors.scenes.samples import SceneTest, add_test_options, read_test
from pipelines.masks import rle
from pipelines.masks.drawing import LabeledMask, contact_sheet, draw_masks
from xsam_model.post_processing.instances import InstanceSegmentation
from xsam_model.segmenter import XSamSegmenter
from xsam_model.training.samples.samples import TrainingSample

# Scenes are small: unsure masks, or too many, would cover the picture; enlarged, their outlines can be told apart.
_SURE, _MOST_DRAWN, _ENLARGED = 0.3, 8, 3


def draw_failures(segmenter: XSamSegmenter, test: SceneTest, number: int = 8) -> Image.Image:
    """Label scenes with `test.num_names` category names, and draw those with the smallest share of objects found.

    Args:
        segmenter: the model.
        test: the scenes; all `count` of them are labeled.
        number: how many scenes to draw.

    Returns:
        A sheet with the ground truth of each scene, and beside it the masks found with a score of 0.3 or more.
    """
    judged = []
    for batch in test.batches(test.samples("ovseg", num_names=test.num_names)):
        results = segmenter.segment(
            [sample.image for sample in batch],
            task="ovseg",
            conditions=[sample.conditions for sample in batch],
            threshold=_SURE,
        )
        for sample, result in zip(batch, results, strict=True):
            assert isinstance(result.segmentation, InstanceSegmentation)
            judged.append((_share_found(sample, result.segmentation), sample, result.segmentation))
    judged.sort(key=lambda one: one[0])
    pictures = []
    for share, sample, found in judged[:number]:
        true = [(mask, int(label), 1.0) for mask, label in zip(sample.masks, sample.labels, strict=True)]
        pictures.append(("truth", *_draw(sample, true)))
        pictures.append((f"found: {100 * share:.0f} % of the objects", *_draw(sample, _best(found))))
    return contact_sheet(pictures, columns=4)


def _best(found: InstanceSegmentation) -> list[tuple[np.ndarray, int, float]]:
    order = found.scores.argsort(descending=True)[:_MOST_DRAWN].tolist()
    return [(found.masks[one].cpu().numpy(), int(found.labels[one]), float(found.scores[one])) for one in order]


def _share_found(sample: TrainingSample, found: InstanceSegmentation) -> float:
    """Return the share of objects for which a mask of the right name has an IoU above one half."""
    masks, labels = found.masks.cpu().numpy(), found.labels.cpu().numpy()
    hits = [
        any(
            label == true_label and 2 * np.sum(mask & true) > np.sum(mask | true)
            for mask, label in zip(masks, labels, strict=True)
        )
        for true, true_label in zip(sample.masks, sample.labels, strict=True)
    ]
    # Where there is nothing to find nothing was missed: such scenes are drawn last.
    return float(np.mean(hits)) if hits else 1.0


def _draw(
    sample: TrainingSample, masks: Sequence[tuple[np.ndarray, int, float]]
) -> tuple[Image.Image, list[LabeledMask]]:
    def large(array: np.ndarray) -> np.ndarray:
        return array.repeat(_ENLARGED, 0).repeat(_ENLARGED, 1)

    drawn = [
        LabeledMask(segmentation=rle.encode(large(mask)), name=sample.conditions[label], score=score, color=label)
        for mask, label, score in reversed(masks)  # the best on top
        if mask.any()
    ]
    return draw_masks(large(sample.image), drawn), drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.scenes.failures", description=(__doc__ or "").splitlines()[0]
    )
    add_test_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="picture to write, .jpg or .png")
    options = parser.parse_args(arguments)
    segmenter = XSamSegmenter.from_pretrained(options.model, device_map="auto")
    draw_failures(segmenter, read_test(options)).save(options.output)


if __name__ == "__main__":
    main()
