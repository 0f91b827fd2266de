"""How well a model does on scenes that nobody trained on: every task against their exact truth.

python -m actors.evaluate_scenes --model DIR --assets DIR --split test --seed 1 --count 160 --core
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines import rle
from pipelines.metrics import FoundMask, TrueMask, mask_average_precision, referring_iou
from xsam_model.post_processing_xsam import InstanceSegmentation, PhraseSegmentation
from xsam_model.segmenter import XSamResult, XSamSegmenter
from xsam_model.training.samples import TrainingSample
from xsam_model.training.scene_assets import DEFAULT_FOLDER, SPLITS, SceneAssets
from xsam_model.training.scene_source import SceneSource
from xsam_model.training.scene_tasks import AskConfig
from xsam_model.training.scenes import SceneConfig

PROMPT_KINDS = ("point", "scribble", "box", "mask")
# Phrases that only the place or the size of an object can decide.
_RELATIVE = re.compile(r"\b(left|right|top|bottom|largest|smallest)\b")
_TASK_NUMBERS = {"ovseg": 1, "vgdseg": 2, "refseg": 3, "intseg": 4, "gcgseg": 5}


@dataclass(frozen=True, kw_only=True)
class SceneTest:
    """Which scenes to test on; the same fields give the same scenes.

    Attributes:
        assets: pictures.
        split: one of `scene_assets.SPLITS`.
        seed: of the scenes; training never draws from these splits.
        count: scenes for each question.
        scene: how scenes look.
        num_names: names asked at once in the shorter of the two open-vocabulary tests.
        batch_size: images that go through the model together.
    """

    assets: SceneAssets
    split: str = "test"
    seed: int = 0
    count: int = 160
    scene: SceneConfig = field(default_factory=SceneConfig)
    num_names: int = 16
    batch_size: int = 8

    def samples(self, task: str, **asked: Any) -> list[TrainingSample]:
        """Draw the scenes with their questions."""
        config = AskConfig(nothing_present_share=0.0, synonym_share=0.0, **asked)
        source = SceneSource(self.assets, task, self.split, self.scene, config)
        seeds = ([self.seed, _TASK_NUMBERS[task], index] for index in range(self.count))
        return [source.draw(0, np.random.default_rng(seed)) for seed in seeds]

    def batches(self, samples: Sequence[TrainingSample]) -> Iterator[Sequence[TrainingSample]]:
        """Cut samples into batches."""
        for start in range(0, len(samples), self.batch_size):
            yield samples[start : start + self.batch_size]


def evaluate_scenes(segmenter: XSamSegmenter, test: SceneTest, say: Callable[[str], None] = print) -> dict[str, float]:
    """Run every test.

    Returns:
        Figures in percent by name: mask AP and AP50 of open-vocabulary names (so many at once, and all), AP50 of visual
        prompts by kind, referring cIoU (of all phrases; of those that only place or size decides, with and without
        telling the model which), mean IoU of points and of captions.
    """
    figures: dict[str, float] = {}
    every = len(test.assets.pool(test.split, test.scene.core_only).asked)
    for label, names in ((f"ov_{test.num_names}", test.num_names), ("ov_all", every)):
        figures |= _instances(segmenter, test, f"{label}_", test.samples("ovseg", num_names=names))
        say(_line(figures, label))
    for kind in PROMPT_KINDS:
        figures |= _instances(segmenter, test, f"vgd_{kind}_", test.samples("vgdseg", prompt_kinds=(kind,)))
        say(_line(figures, f"vgd_{kind}"))
    figures |= _referring(segmenter, test)
    figures |= _interactive(segmenter, test)
    figures |= _captions(segmenter, test)
    say(_line(figures, "ref") + "  " + _line(figures, "int") + "  " + _line(figures, "gcg"))
    return figures


def _instances(
    segmenter: XSamSegmenter, test: SceneTest, prefix: str, samples: Sequence[TrainingSample]
) -> dict[str, float]:
    truth: list[TrueMask] = []
    found: list[FoundMask] = []
    number = 0
    for batch in test.batches(samples):
        for sample, result in zip(batch, _segment(segmenter, batch, threshold=0.0), strict=True):
            image, names = str(number), sample.conditions
            number += 1
            for mask, label in zip(sample.masks, sample.labels, strict=True):
                truth.append(TrueMask(image_id=image, category=names[label], segmentation=rle.encode(mask)))
            instances = result.segmentation
            assert isinstance(instances, InstanceSegmentation)
            for score, label, dense in zip(*(_numpy(instances.scores, instances.labels, instances.masks)), strict=True):
                found.append(
                    FoundMask(image_id=image, category=names[label], segmentation=rle.encode(dense), score=float(score))
                )
    precision = mask_average_precision(truth, found)
    return {f"{prefix}ap": 100 * precision.ap, f"{prefix}ap50": 100 * precision.ap50}


def _segment(segmenter: XSamSegmenter, batch: Sequence[TrainingSample], threshold: float = 0.5) -> Sequence[XSamResult]:
    """Ask what the samples of one task ask."""
    is_visual = bool(batch[0].visual_prompts)
    return segmenter.segment(
        [sample.image for sample in batch],
        task=batch[0].task,
        conditions=None if is_visual else [sample.conditions for sample in batch],
        visual_prompts=[sample.visual_prompts for sample in batch] if is_visual else None,
        threshold=threshold,
    )


def _referring(segmenter: XSamSegmenter, test: SceneTest) -> dict[str, float]:
    samples = test.samples("refseg")
    relative = [sample for sample in samples if _RELATIVE.search(sample.conditions[0])]
    # The same question without the word that decides it: what a model scores that does not read it.
    blind = [replace(sample, conditions=(_RELATIVE.sub("", sample.conditions[0]),)) for sample in relative]
    figures = {}
    for name, group in (("ref", samples), ("ref_relative", relative), ("ref_relative_blind", blind)):
        pairs = [pair for batch in test.batches(group) for pair in _one_mask_each(segmenter, batch)]
        figures[f"{name}_ciou"] = 100 * referring_iou(pairs).ciou if pairs else float("nan")
    figures["ref_relative_count"] = float(len(relative))
    return figures


def _interactive(segmenter: XSamSegmenter, test: SceneTest) -> dict[str, float]:
    samples = test.samples("intseg", prompt_kinds=("point",))
    pairs = [pair for batch in test.batches(samples) for pair in _one_mask_each(segmenter, batch)]
    ious = referring_iou(pairs)
    return {"int_point_miou": 100 * ious.giou, "int_point_ciou": 100 * ious.ciou}


def _captions(segmenter: XSamSegmenter, test: SceneTest) -> dict[str, float]:
    """Mean IoU of the phrases of a caption that is given: how well the named things are found, not what is said."""
    overlaps = []
    for sample in test.samples("gcgseg"):
        (result,) = segmenter.segment([sample.image], task="gcgseg", answer=sample.answer)
        assert isinstance(result.segmentation, PhraseSegmentation)
        found = result.segmentation.masks.cpu().numpy()
        for mask, dense in zip(sample.masks, found, strict=True):
            overlaps.append(np.sum(mask & dense) / max(1, np.sum(mask | dense)))
    return {"gcg_given_miou": 100 * float(np.mean(overlaps))}


def _one_mask_each(segmenter: XSamSegmenter, batch: Sequence[TrainingSample]) -> Iterator[tuple[rle.Rle, rle.Rle]]:
    for sample, result in zip(batch, _segment(segmenter, batch), strict=True):
        assert isinstance(result.segmentation, PhraseSegmentation)
        yield rle.encode(sample.masks[0]), rle.encode(result.segmentation.masks[0].cpu().numpy())


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.cpu().numpy() for tensor in tensors]


def _line(figures: dict[str, float], prefix: str) -> str:
    return "  ".join(f"{name} {value:.1f}" for name, value in figures.items() if name.startswith(prefix))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.evaluate_scenes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="folder of save_pretrained")
    parser.add_argument("--assets", default=str(DEFAULT_FOLDER), help="folder of scene_assets")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=160, help="scenes for each test")
    parser.add_argument("--side", type=int, default=128, help="pixels of a scene")
    parser.add_argument("--core", action="store_true", help="the small vocabulary")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its choice")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    test = SceneTest(
        assets=SceneAssets.load(options.assets),
        split=options.split,
        seed=options.seed,
        count=options.count,
        scene=SceneConfig(side_pixels=options.side, core_only=options.core),
    )
    started = time.monotonic()
    figures = evaluate_scenes(XSamSegmenter.from_pretrained(options.model), test)
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

__all__ = ["PROMPT_KINDS", "SceneTest", "evaluate_scenes", "main"]
