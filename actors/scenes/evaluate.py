"""Evaluate a model on unseen synthetic scenes: every task against their exact ground truth.

python -m actors.scenes.evaluate --model DIR --assets DIR --split test --seed 1 --count 160 --core
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from actors.scenes.samples import SceneTest, add_test_options, read_test
from pipelines.bounded_json import plain_json
from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.map_metrics import Maps, Segment, panoptic_quality
from pipelines.evaluation.mask_metrics import grounded_caption_quality, mask_average_precision, referring_iou
from pipelines.masks import rle
from pipelines.types import Rle
from xsam_model.layers.region_sampling import together
from xsam_model.post_processing.instances import InstanceSegmentation, PhraseSegmentation
from xsam_model.post_processing.maps import PanopticSegmentation
from xsam_model.segmenter import VisualPrompt, XSamResult, XSamSegmenter
from xsam_model.training.samples.samples import TrainingSample

PROMPT_KINDS = ("point", "scribble", "box", "mask")
PARTS = ("ov", "vgd", "exemplar", "ref", "int", "gcg", "pan")
# Words of phrases that only the position or the size of an object decides.
_RELATIVE = re.compile(r"\b(left|right|top|bottom|largest|smallest)\b")
_MAX_CAPTION_TOKENS = 192
# COCO's evaluation counts the 100 best detections of an image.
_MAX_INSTANCES = 100
NUMBERS_OF_EXEMPLARS = (1, 5)
# Of each category, for each scene to have some of its own: one odd object would else decide a category's figure.
_EXEMPLARS_KEPT = 12

Figures = dict[str, float]
_Ask = Callable[[XSamSegmenter, SceneTest], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """One test.

    Attributes:
        part: one of PARTS.
        ask: runs the test and returns its figures.
        num_sets: how many sets of `count` scenes it asks about.
    """

    part: str
    ask: _Ask
    num_sets: int = 1


def evaluate_scenes(
    segmenter: XSamSegmenter, test: SceneTest, say: Callable[[str], None] = print, *, only: Sequence[str] = PARTS
) -> Figures:
    """Run the tests.

    Args:
        segmenter: the model.
        test: the scenes.
        say: receives a line of figures after each test.
        only: which of PARTS to run.

    Returns:
        Figures in percent by name, NaN if nothing could be tested. ov: mask AP and AP50 of open-vocabulary segmentation
        with `test.num_names` names asked at once, and with all. vgd: AP and AP50 of visual prompts by kind. exemplar:
        the same of the box of one, and of the boxes of five, objects of the category in other scenes. ref:
        referring cIoU of all phrases; of those that only position or size decides, with and without the deciding word;
        and the number of the latter. int: mean IoU and cIoU of point prompts. gcg: mean IoU of the phrases of a given
        caption; mean IoU and AP50 of those of generated captions. pan: panoptic quality of all names, things and stuff.
    """
    figures: Figures = {}
    for question in _questions(test):
        if question.part in only:
            found = question.ask(segmenter, test)
            figures |= found
            say("  ".join(f"{name} {value:.1f}" for name, value in found.items()))
    return figures


def count_scenes(test: SceneTest, only: Sequence[str] = PARTS) -> int:
    """Return about how many scenes will be asked about, each test's scenes counted anew."""
    return test.count * sum(question.num_sets for question in _questions(test) if question.part in only)


def _questions(test: SceneTest) -> list[_Question]:
    return [
        _Question(part="ov", ask=_instances(f"ov_{test.num_names}_", "ovseg", num_names=test.num_names)),
        _Question(part="ov", ask=_instances("ov_all_", "ovseg", num_names=test.num_asked)),
        *(
            _Question(part="vgd", ask=_instances(f"vgd_{kind}_", "vgdseg", prompt_kinds=(kind,)))
            for kind in PROMPT_KINDS
        ),
        _Question(part="exemplar", ask=_by_exemplars, num_sets=len(NUMBERS_OF_EXEMPLARS)),
        _Question(part="ref", ask=_referring, num_sets=3),
        _Question(part="int", ask=_interactive),
        _Question(part="gcg", ask=_given_captions),
        _Question(part="gcg", ask=_own_captions),
        _Question(part="pan", ask=_panoptic),
    ]


def _instances(prefix: str, task: str, **asked: Any) -> _Ask:
    """Return a test of the average precision of a task's instances; ``asked`` as for `SceneTest.samples`."""

    def ask(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
        truth, found = find_instances(segmenter, test.batches(test.samples(task, **asked)))
        precision = mask_average_precision(truth, found)
        return {f"{prefix}ap": 100 * precision.ap, f"{prefix}ap50": 100 * precision.ap50}

    return ask


def _by_exemplars(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    """Ask the scenes of "vgd_box" for what other scenes show by boxes, one or several for each category."""
    samples = test.samples("vgdseg", prompt_kinds=("box",))
    names = sorted({name for sample in samples for name in sample.conditions})
    shown, figures = Exemplars(segmenter, test.exemplars(names, _EXEMPLARS_KEPT, prompt_kinds=("box",))), Figures()
    for number in NUMBERS_OF_EXEMPLARS:
        by_others = partial(shown.of_sample, number=number, random=np.random.default_rng([test.seed, number]))
        precision = mask_average_precision(*find_instances(segmenter, test.batches(samples), by_others))
        name = f"exemplar_{number}_box_"
        figures |= {f"{name}ap": 100 * precision.ap, f"{name}ap50": 100 * precision.ap50}
    return figures


class Exemplars:
    """What a model has made of marked objects, to be asked of other images by their names."""

    def __init__(self, segmenter: XSamSegmenter, marked: Mapping[str, Sequence[TrainingSample]]) -> None:
        """Look at the objects: samples with one visual prompt each, by name."""
        self._read = {
            name: [
                (one.image, segmenter.pool_regions(segmenter.encode([one.image]), 0, one.visual_prompts)[0])
                for one in of_name
            ]
            for name, of_name in marked.items()
        }

    def of_sample(self, sample: TrainingSample, number: int, random: np.random.Generator) -> list[torch.Tensor]:
        """Return what objects in other images show of each category of a sample.

        Args:
            sample: of vgdseg.
            number: objects of each category, chosen by lot; all if there are not as many.
            random: source of the lots.
        """
        read = []
        for name in sample.conditions:
            others = [one for shown_in, one in self._read[name] if shown_in is not sample.image]
            read.append(together([others[place] for place in random.permutation(len(others))[:number]]))
        return read


def find_instances(
    segmenter: XSamSegmenter,
    batches: Iterable[Sequence[TrainingSample]],
    shown: Callable[[TrainingSample], Sequence[VisualPrompt]] = lambda sample: sample.visual_prompts,
) -> tuple[list[TrueMask], list[FoundMask]]:
    """Return the true and all found masks of samples of ovseg or vgdseg; images are numbered in order: "0", "1", ...

    Args:
        segmenter: the model.
        batches: samples of one task.
        shown: returns the visual prompts of a sample; by default its own.
    """
    truth: list[TrueMask] = []
    found: list[FoundMask] = []
    number = 0
    for batch in batches:
        # Average precision ranks all candidates, however low their scores.
        for sample, result in zip(batch, _segment(segmenter, batch, threshold=0.0, shown=shown), strict=True):
            image, names = str(number), sample.conditions
            number += 1
            for mask, label in zip(sample.masks, sample.labels, strict=True):
                truth.append(TrueMask(image_id=image, category=names[label], segmentation=rle.encode(mask)))
            instances = result.segmentation
            assert isinstance(instances, InstanceSegmentation)
            tensors = (instances.scores, instances.labels, instances.masks)
            for score, label, dense in zip(*(tensor.cpu().numpy() for tensor in tensors), strict=True):
                found.append(
                    FoundMask(image_id=image, category=names[label], segmentation=rle.encode(dense), score=float(score))
                )
    return truth, found


def _segment(
    segmenter: XSamSegmenter,
    batch: Sequence[TrainingSample],
    threshold: float = 0.5,
    shown: Callable[[TrainingSample], Sequence[VisualPrompt]] = lambda sample: sample.visual_prompts,
) -> Sequence[XSamResult]:
    """Segment a batch of samples of one task."""
    is_visual = bool(batch[0].visual_prompts)
    return segmenter.segment(
        [sample.image for sample in batch],
        task=batch[0].task,
        conditions=None if is_visual else [sample.conditions for sample in batch],
        visual_prompts=[shown(sample) for sample in batch] if is_visual else None,
        threshold=threshold,
        top_k=_MAX_INSTANCES,
    )


def _referring(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    relative = test.samples("refseg", wanted=lambda sample: _RELATIVE.search(sample.conditions[0]) is not None)
    # The same phrases without the deciding word: the score of a model that ignores it.
    blind = [replace(sample, conditions=(_RELATIVE.sub("", sample.conditions[0]),)) for sample in relative]
    groups = (("ref", test.samples("refseg")), ("ref_relative", relative), ("ref_relative_blind", blind))
    figures = {}
    for name, group in groups:
        pairs = [(true, found) for batch in test.batches(group) for true, found, _ in one_mask_each(segmenter, batch)]
        figures[f"{name}_ciou"] = 100 * referring_iou(pairs).ciou if pairs else float("nan")
    figures["ref_relative_count"] = float(len(relative))
    return figures


def _interactive(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    samples = test.samples("intseg", prompt_kinds=("point",))
    pairs = [(true, found) for batch in test.batches(samples) for true, found, _ in one_mask_each(segmenter, batch)]
    ious = referring_iou(pairs)
    return {"int_point_miou": 100 * ious.giou, "int_point_ciou": 100 * ious.ciou}


def _given_captions(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    """Return the mean IoU of the phrases of given captions, which tests the grounding and not the captioning."""
    overlaps = []
    for (sample,) in test.batches(test.samples("gcgseg"), size=1):
        (result,) = segmenter.segment([sample.image], task="gcgseg", answer=sample.answer)
        assert isinstance(result.segmentation, PhraseSegmentation)
        found = result.segmentation.masks.cpu().numpy()
        for mask, dense in zip(sample.masks, found, strict=True):
            # At least 1: an empty mask found for an empty one would be 0 / 0.
            overlaps.append(np.sum(mask & dense) / max(1, np.sum(mask | dense)))
    return {"gcg_given_miou": 100 * float(np.mean(overlaps))}


def _own_captions(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    """Return the quality of the masks of generated captions, for which the model has to find what there is to say."""
    images: list[tuple[list[Rle], list[Rle]]] = []
    for batch in test.batches(test.samples("gcgseg")):
        pictures = [sample.image for sample in batch]
        results = segmenter.segment(pictures, task="gcgseg", max_new_tokens=_MAX_CAPTION_TOKENS)
        for sample, result in zip(batch, results, strict=True):
            found: list[Rle] = []
            if result.segmentation is not None:
                assert isinstance(result.segmentation, PhraseSegmentation)
                found = [rle.encode(mask) for mask in result.segmentation.masks.cpu().numpy() if mask.any()]
            images.append((found, rle.encode_batch(sample.masks)))
    quality = grounded_caption_quality(images)
    return {"gcg_miou": 100 * quality.miou, "gcg_ap50": 100 * quality.ap50}


def _panoptic(segmenter: XSamSegmenter, test: SceneTest) -> Figures:
    """Return the panoptic quality with all names asked; pixels of the background picture are void."""
    samples = test.samples("genseg", all_names_share=1.0)
    maps = (pair for batch in test.batches(samples) for pair in _maps(segmenter, batch, test.stuff_names))
    quality = panoptic_quality(maps, stuff=test.stuff_names)
    groups = {"": quality.all, "_things": quality.things, "_stuff": quality.stuff}
    return {f"pan_pq{name}": 100 * part.pq if part else float("nan") for name, part in groups.items()}


def _maps(segmenter: XSamSegmenter, batch: Sequence[TrainingSample], stuff: Sequence[str]) -> Iterator[Maps]:
    asked = {name for sample in batch for name in sample.conditions}
    results = segmenter.segment(
        [sample.image for sample in batch],
        task="genseg",
        conditions=[sample.conditions for sample in batch],
        segmentation="panoptic",
        stuff=[name for name in stuff if name in asked],
        # As the reference implementation evaluates: the queries compete for pixels, however unsure they are.
        threshold=0.0,
    )
    for sample, result in zip(batch, results, strict=True):
        assert isinstance(result.segmentation, PanopticSegmentation)
        names, ids = sample.conditions, result.segmentation.segmentation.cpu().numpy()
        found = [Segment(names[part.label], rle.encode(ids == part.id)) for part in result.segmentation.segments]
        truth = zip(sample.labels, sample.masks, strict=True)
        yield found, [Segment(names[label], rle.encode(mask)) for label, mask in truth]


def one_mask_each(segmenter: XSamSegmenter, batch: Sequence[TrainingSample]) -> Iterator[tuple[Rle, Rle, float]]:
    """Yield the true and the found mask of each sample of a task that asks for one mask, and the found one's score."""
    for sample, result in zip(batch, _segment(segmenter, batch), strict=True):
        found = result.segmentation
        assert isinstance(found, PhraseSegmentation)
        yield rle.encode(sample.masks[0]), rle.encode(found.masks[0].cpu().numpy()), float(found.scores[0])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors.scenes.evaluate", description=(__doc__ or "").splitlines()[0]
    )
    add_test_options(parser)
    add_run_options(parser, PARTS)
    return parser


def add_run_options(parser: argparse.ArgumentParser, known: Sequence[str]) -> None:
    """Add the options of a command that runs parts of an evaluation: --only, --threads and --json.

    Args:
        parser: of the command.
        known: the parts that it has.
    """

    def parts(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"no such part: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return chosen

    parser.add_argument("--only", type=parts, default=known, help=f"parts to run, of {','.join(known)}")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its choice")
    parser.add_argument("--json", type=Path, help="file to write the figures to")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    test = read_test(options)
    started = time.monotonic()
    # A log keeps every line of the bar, so there it gets one only now and then.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    segmenter = XSamSegmenter.from_pretrained(options.model, device_map="auto")
    with tqdm(desc="asking", total=count_scenes(test, options.only), unit=" scenes", mininterval=interval) as bar:
        figures = evaluate_scenes(segmenter, replace(test, on_asked=bar.update), tqdm.write, only=options.only)
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(plain_json(figures), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
