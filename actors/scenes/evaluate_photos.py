"""Evaluate a model on photographs that were outlined by hand: by box, by point, by example and by name.

python -m actors.scenes.fetch_photos
python -m actors.scenes.evaluate_photos --model xsam_model/weights/xsam-tiny --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from actors.scenes.evaluate import (
    NUMBERS_OF_EXEMPLARS,
    Exemplars,
    Figures,
    add_run_options,
    find_instances,
    one_mask_each,
)
from actors.scenes.photo_prompts import Mask, box_prompt, inner_prompt, pole_prompt
from actors.scenes.photo_truth import DEFAULT_FOLDER, TRUTH, OutlinedObject, Photo, PhotoTruth, read_photo_truth
from actors.scenes.samples import reported_batches
from pipelines.bounded_json import plain_json
from pipelines.errors import UserError
from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.mask_metrics import mask_average_precision, referring_iou
from pipelines.evaluation.score_calibration import RIGHT_IOU, expected_calibration_error, right_masks
from pipelines.masks import rle
from xsam_model.segmenter import XSamSegmenter
from xsam_model.training.samples.samples import TrainingSample

PARTS = ("box", "point", "random", "vgd", "exemplar", "ov")
NUM_ABSENT = 10
ABSENT_SCORE = 0.3
"""A mask of an absent name with this score or more is one that people would see."""
KEPT_SCORE = 0.05
"""Of open vocabulary and visual grounding, masks with this score or more are told by a run as it is set by default."""
SIZE_BANDS = {"small": (0.0, 0.05), "medium": (0.05, 0.3), "large": (0.3, 1.01)}
"""Shares of the picture, from and below."""
_Draw = Callable[[Mask], Mask]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoTest:
    """What is asked.

    Attributes:
        truth: photographs and outlines.
        seeds: seeds of what is drawn by lot (inner points, examples, absent names); figures are means over them.
        batch_size: images that go through the model together.
        on_asked: called with the number of samples just asked about.
    """

    truth: PhotoTruth
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 8
    on_asked: Callable[[int], object] = lambda _count: None

    def batches(self, samples: Sequence[TrainingSample]) -> Iterator[Sequence[TrainingSample]]:
        """Yield batches of samples; a batch is reported when the next is taken."""
        return reported_batches(samples, self.batch_size, self.on_asked)


def evaluate_photos(
    segmenter: XSamSegmenter, test: PhotoTest, say: Callable[[str], None] = print, *, only: Sequence[str] = PARTS
) -> Figures:
    """Run the tests.

    Args:
        segmenter: the model.
        test: what is asked.
        say: receives a line of figures after each test.
        only: which of PARTS to run.

    Returns:
        Figures by name, NaN where there is nothing to test. All are fractions in [0, 1] except absent_per_picture.

        box, point, random: mean IoU of interactive segmentation of every object from its bounding box, from the point
        farthest from its outline, and from random inner points; box_itself: that of the filled box taken as the mask.
        Each also for the sizes of SIZE_BANDS and for the stricter half.
        vgd_ap50: visual grounding, the box of one object of each name as the example, for names all of whose objects
        are outlined. ov_ap50: open vocabulary, all such names of a picture and NUM_ABSENT absent ones asked together.
        Both also for the pictures that hold an object of the stricter half (_strict).
        exemplar_1_ap50, exemplar_5_ap50: the same by the boxes of one object and of up to five in other photographs,
        for names that these show; exemplar_0_ap50: of the same names in the same photographs, by an object in each.
        absent_per_picture: masks of absent names with a score of at least ABSENT_SCORE.
        ece_box, ece_point, ece_random, ece_vgd, ece_ov: expected calibration error of the scores, in 15 bins of as many
        masks: how far a score is from the share of masks of that score that are right, which have an IoU of at least
        0.5 with the object or with one of their name; for vgd and ov of masks with a score of at least KEPT_SCORE. With
        _width in 15 bins of equal width.
    """
    figures: Figures = {}
    for part in only:
        found = {
            "box": _from_box,
            "point": lambda segmenter, test: _interactive(segmenter, test, "point", [pole_prompt]),
            "random": _from_random_points,
            "vgd": _by_example,
            "exemplar": _by_exemplars,
            "ov": _by_name,
        }[part](segmenter, test)
        figures |= found
        say("  ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return figures


def count_samples(test: PhotoTest, only: Sequence[str] = PARTS) -> int:
    """Return how many samples will be asked about."""
    seeds, photos = len(test.seeds), sum(bool(photo.exhaustive) for photo in test.truth.photos)
    objects = len(_objects(test.truth))
    counts = {"box": objects, "point": objects, "random": seeds * objects, "vgd": seeds * photos, "ov": seeds * photos}
    shown = sum(bool(_shown_elsewhere(test.truth, photo)) for photo in test.truth.photos)
    counts["exemplar"] = (1 + len(NUMBERS_OF_EXEMPLARS)) * seeds * shown
    return sum(counts[part] for part in only)


def _from_box(segmenter: XSamSegmenter, test: PhotoTest) -> Figures:
    pairs = ((rle.encode(box_prompt(one.mask)), rle.encode(one.mask)) for _, one in _objects(test.truth))
    itself = [referring_iou([pair]).giou for pair in pairs]
    figures = _interactive(segmenter, test, "box", [box_prompt])
    return figures | _by_group(test.truth, "box_itself", np.array(itself))


def _from_random_points(segmenter: XSamSegmenter, test: PhotoTest) -> Figures:
    def draw(seed: int) -> _Draw:
        random = np.random.default_rng([seed, 1])
        return lambda mask: inner_prompt(mask, random)

    return _interactive(segmenter, test, "random", [draw(seed) for seed in test.seeds])


def _interactive(segmenter: XSamSegmenter, test: PhotoTest, name: str, draws: Sequence[_Draw]) -> Figures:
    overlaps, scores = [], []
    for draw in draws:
        samples = [_sample(photo, "intseg", [draw(one.mask)], [one], [one.name]) for photo, one in _objects(test.truth)]
        rows = [row for batch in test.batches(samples) for row in one_mask_each(segmenter, batch)]
        overlaps.append([referring_iou([(true, found)]).giou for true, found, _ in rows])
        scores.append([score for *_, score in rows])
    ece = _calibration(name, np.ravel(scores), np.ravel(overlaps) >= RIGHT_IOU)
    return _by_group(test.truth, name, np.mean(overlaps, axis=0)) | ece


def _calibration(name: str, scores: NDArray[np.float64], right: NDArray[np.bool_]) -> Figures:
    return {
        f"ece_{name}": expected_calibration_error(scores, right),
        f"ece_{name}_width": expected_calibration_error(scores, right, equal_mass=False),
    }


def _by_group(truth: PhotoTruth, name: str, ious: NDArray[np.float64]) -> Figures:
    """Return the mean of all objects' IoUs, of those of a size, and of the stricter half."""
    objects = [one for _, one in _objects(truth)]
    groups = {"": np.ones(len(objects), dtype=bool)}
    for band, (least, below) in SIZE_BANDS.items():
        groups[f"_{band}"] = np.array([least <= one.share < below for one in objects], dtype=bool)
    groups["_strict"] = np.array([one.is_strict for one in objects], dtype=bool)
    return {
        name + group: float(ious[chosen].mean()) if chosen.any() else float("nan") for group, chosen in groups.items()
    }


def _by_example(segmenter: XSamSegmenter, test: PhotoTest) -> Figures:
    """One object of each name is the example, chosen by lot; all objects of the name are to be found."""
    figures = []
    for seed in test.seeds:
        random = np.random.default_rng([seed, 2])
        samples, photos = [], []
        for photo in test.truth.photos:
            groups = {name: [one for one in photo.objects if one.name == name] for name in photo.exhaustive}
            if groups:
                examples = [group[random.integers(len(group))] for group in groups.values()]
                prompts = [box_prompt(one.mask) for one in examples]
                wanted = [one for group in groups.values() for one in group]
                samples.append(_sample(photo, "vgdseg", prompts, wanted, photo.exhaustive))
                photos.append(photo)
        figures.append(_precision(segmenter, test, samples, photos, "vgd")[0])
    return _mean(figures)


def _by_exemplars(segmenter: XSamSegmenter, test: PhotoTest) -> Figures:
    """Objects of each name in other photographs are the exemplars, chosen by lot."""
    marked: dict[str, list[TrainingSample]] = {}
    for photo, one in _objects(test.truth):
        marked.setdefault(one.name, []).append(_sample(photo, "vgdseg", [box_prompt(one.mask)], [one], [one.name]))
    exemplars, figures = Exemplars(segmenter, marked), []
    for seed in test.seeds:
        random, samples = np.random.default_rng([seed, 4]), list[TrainingSample]()
        for photo in test.truth.photos:
            names = _shown_elsewhere(test.truth, photo)
            groups = {name: [one for one in photo.objects if one.name == name] for name in names}
            if groups:
                own = [box_prompt(group[random.integers(len(group))].mask) for group in groups.values()]
                wanted = [one for group in groups.values() for one in group]
                samples.append(_sample(photo, "vgdseg", own, wanted, names))
        found = {"exemplar_0_ap50": _ap50(*find_instances(segmenter, test.batches(samples)))}
        for number in NUMBERS_OF_EXEMPLARS:
            shown = partial(exemplars.of_sample, number=number, random=random)
            found[f"exemplar_{number}_ap50"] = _ap50(*find_instances(segmenter, test.batches(samples), shown))
        figures.append(found)
    return _mean(figures)


def _shown_elsewhere(truth: PhotoTruth, photo: Photo) -> list[str]:
    """Return the names of a photograph, all of whose objects are outlined in it, that another one shows too."""
    others = {one.name for other in truth.photos if other is not photo for one in other.objects}
    return [name for name in photo.exhaustive if name in others]


def _ap50(truth: Sequence[TrueMask], found: Sequence[FoundMask]) -> float:
    return mask_average_precision(truth, found).ap50 if truth else float("nan")


def _by_name(segmenter: XSamSegmenter, test: PhotoTest) -> Figures:
    figures = []
    for seed in test.seeds:
        random = np.random.default_rng([seed, 3])
        photos = [photo for photo in test.truth.photos if photo.exhaustive]
        samples = []
        for photo in photos:
            absent = absent_names(photo, test.truth.names, random)
            wanted = [one for one in photo.objects if one.name in photo.exhaustive]
            samples.append(_sample(photo, "ovseg", [], wanted, [*photo.exhaustive, *absent]))
        found, absent_masks = _precision(segmenter, test, samples, photos, "ov")
        figures.append(found | {"absent_per_picture": absent_masks / len(photos) if photos else float("nan")})
    return _mean(figures)


def _precision(
    segmenter: XSamSegmenter, test: PhotoTest, samples: Sequence[TrainingSample], photos: Sequence[Photo], name: str
) -> tuple[Figures, int]:
    """Return AP50 of all pictures and of those with a stricter object, ECE, and the number of absent masks."""
    truth, found = find_instances(segmenter, test.batches(samples))
    held = {(mask.image_id, mask.category) for mask in truth}
    num_absent = sum(mask.score >= ABSENT_SCORE and (mask.image_id, mask.category) not in held for mask in found)
    strict = {
        str(number)
        for number, photo in enumerate(photos)
        if any(one.is_strict and one.name in photo.exhaustive for one in photo.objects)
    }
    figures = {}
    for group, chosen in (("_ap50", {mask.image_id for mask in truth}), ("_ap50_strict", strict)):
        wanted = [mask for mask in truth if mask.image_id in chosen]
        candidates = [mask for mask in found if mask.image_id in chosen]
        figures[name + group] = mask_average_precision(wanted, candidates).ap50 if wanted else float("nan")
    kept = [mask for mask in found if mask.score >= KEPT_SCORE]
    ece = _calibration(name, np.array([mask.score for mask in kept]), right_masks(truth, kept))
    return figures | ece, num_absent


def _mean(figures: Sequence[Figures]) -> Figures:
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}


def _objects(truth: PhotoTruth) -> list[tuple[Photo, OutlinedObject]]:
    return [(photo, one) for photo in truth.photos for one in photo.objects]


def _sample(
    photo: Photo, task: str, prompts: Sequence[Mask], wanted: Sequence[OutlinedObject], names: Sequence[str]
) -> TrainingSample:
    return TrainingSample(
        image=photo.pixels,
        task=task,
        conditions=tuple(names),
        visual_prompts=tuple(prompts),
        masks=np.stack([one.mask for one in wanted]),
        labels=np.array([list(names).index(one.name) for one in wanted], dtype=np.int64),
    )


def absent_names(photo: Photo, names: Sequence[str], random: np.random.Generator) -> list[str]:
    """Choose NUM_ABSENT names by lot, fewer if there are not as many, that the photograph does not show."""
    seen = photo.shows | {one.name for one in photo.objects}
    absent = [name for name in names if name not in seen]
    return [str(name) for name in random.choice(absent, min(NUM_ABSENT, len(absent)), replace=False)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors.scenes.evaluate_photos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", required=True, help="folder of save_pretrained")
    parser.add_argument("--truth", type=Path, default=TRUTH, help="COCO file of outlines")
    parser.add_argument("--photos", type=Path, default=DEFAULT_FOLDER, help="folder of fetch_photos")
    parser.add_argument("--seeds", type=_numbers, default=(0, 1, 2), help="of what is drawn by lot, as 0,1,2")
    add_run_options(parser, PARTS)
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        truth = read_photo_truth(options.truth, options.photos)
    except UserError as error:
        sys.exit(str(error))
    note = f"; {truth.num_missing} more with python -m actors.scenes.fetch_photos" if truth.num_missing else ""
    print(f"{len(truth.photos)} photographs, {len(_objects(truth))} objects, {len(truth.names)} names{note}")
    segmenter = XSamSegmenter.from_pretrained(options.model, device_map="auto")
    test = PhotoTest(truth=truth, seeds=options.seeds)
    # A log keeps every line of the bar, so there it gets one only now and then.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(desc="asking", total=count_samples(test, options.only), mininterval=interval) as bar:
        figures = evaluate_photos(segmenter, replace(test, on_asked=bar.update), tqdm.write, only=options.only)
    if options.json:
        options.json.write_text(json.dumps(plain_json(figures), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
