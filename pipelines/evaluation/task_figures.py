"""Compute the figures of each task from the rows of a run and a ground truth: which is compared with which, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipelines.errors import some_of
from pipelines.evaluation.category_names import CountedNames
from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.decisions import Decision, decide
from pipelines.evaluation.ground_truth import InstanceTruth, PanopticTruth, PhraseTruth, TruePhrase
from pipelines.evaluation.labeled_run import Found, LabeledImage, LabeledRun
from pipelines.evaluation.map_metrics import Maps, Quality, Segment, panoptic_quality, semantic_iou
from pipelines.evaluation.mask_metrics import (
    grounded_caption_quality,
    mask_average_precision,
    referring_iou,
)
from pipelines.masks import rle
from pipelines.redaction import counted
from pipelines.types import PANOPTIC_TASKS, REGION_KINDS, SENTENCE_TASKS, Prompt, Rle, Task

Figures = Mapping[str, float | int | None]
"""Figures by name: float fractions in [0, 1] and int counts; None where a figure is undefined."""

EXEMPLAR = "exemplar"
"""The group of what regions of other images showed, whatever kind of regions they are."""
_ASKED_ONE_BY_ONE: tuple[Task, ...] = ("refseg", "reaseg", "intseg")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """The figures of one task, or of one group within it.

    Attributes:
        task: the task.
        group: kind of visual prompt (vgdseg, intseg), "things" or "stuff" (panoptic); empty for the whole task.
        figures: the task's figures.
        categories: figures by category, sorted by name; empty if the task has none.
        curves: precision at recalls 0, 0.01, ..., 1, by the name of the figure that is its mean; empty if the task has
            none.
        confusion: for decisions: "true", "found" and "count", the most frequent first; None is "nothing there" and
            "not found".
        scores: for decisions: "score", "precision", "recall" and "F1" of all categories together, the highest first.
    """

    task: Task
    group: str = ""
    figures: Figures
    categories: Mapping[str, Figures] = field(default_factory=dict)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    confusion: Sequence[Mapping[str, Any]] = ()
    scores: Sequence[Figures] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the comparisons of all tasks share.

    Attributes:
        run: the run.
        count_unasked: whether categories of the truth that were never asked count.
        score: the least score that is kept, for decisions; "best" for each category's own; None for no decisions.
        on_image: called after each image with its task and the number of that task's images read so far.
        notes: messages about what is left out are appended here.
    """

    run: LabeledRun
    count_unasked: bool = False
    score: float | Literal["best"] | None = None
    on_image: Callable[[Task, int], None]
    notes: list[str] = field(default_factory=list)

    def found(self, task: Task) -> Iterator[tuple[LabeledImage, list[Found]]]:
        """Yield every image with what was found for a task."""
        for number, pair in enumerate(self.run.found(task), start=1):
            yield pair
            self.on_image(task, number)

    def names(self, task: Task, true: Sequence[str]) -> CountedNames:
        """Return the evaluated categories of a task whose categories are asked of every image."""
        images = self.run.images_asked(task)
        if left_out := [name for name in self.run.images if name not in images]:
            self.notes.append(
                f"{task}: {counted(len(left_out), 'image was never', 'images were never')} asked, left out: "
                f"{some_of(left_out)}"
            )
        asked = [prompt.text for prompt in self.run.common if prompt.task == task]
        return CountedNames.of(task, true, asked, self.count_unasked, self.notes)

    def unasked(self, image: LabeledImage, task: Task, names: CountedNames) -> set[str | None]:
        """Return the categories of a task that runs asked of other images, not of this one: nothing is known there."""
        of_task = self.run.texts(task)
        if self.count_unasked or image.asked is None or of_task.keys() <= image.asked:
            return set()
        both: tuple[set[str | None], set[str | None]] = set(), set()
        for prompt_id, text in of_task.items():
            both[prompt_id in image.asked].add(names.of_found(text))
        return both[False] - both[True]


def instance_figures(comparison: Comparison, truth: InstanceTruth, task: Task) -> Iterator[TaskFigures]:
    """Yield the mask AP of ovseg or genseg."""
    names = comparison.names(task, truth.categories)
    true = list(_true_masks(comparison, truth, names, task))
    if 2 * (crowds := sum(one.is_crowd for one in true)) > len(true):
        comparison.notes.append(
            f"{task}: {crowds:,} of {len(true):,} objects of the truth are crowds (iscrowd 1) and count neither way; "
            "some exporters write that of every mask"
        )
    found = [
        FoundMask(image.image_id, name, mask.segmentation, mask.score)
        for image, masks in comparison.found(task)
        for mask in masks
        if (name := names.of_found(mask.category)) is not None
    ]
    yield _precision(comparison, task, "", true, found)


def visual_prompt_figures(comparison: Comparison, truth: InstanceTruth) -> Iterator[TaskFigures]:
    """Yield the mask AP of vgdseg by kind of prompt; in each image only the categories that such a prompt asks for."""
    prompts = _visual_prompts(comparison, "vgdseg")
    labels = [prompt.category_name for prompt in prompts.values()]
    names = CountedNames.of("vgdseg", truth.categories, labels, False, comparison.notes)
    true = list(_true_masks(comparison, truth, names, "vgdseg"))
    found: dict[str, list[FoundMask]] = {}
    for image, masks in comparison.found("vgdseg"):
        for mask in masks:
            prompt, name = prompts.get((image.image_id, mask.prompt_id)), names.of_found(mask.category)
            if prompt is not None and name is not None:
                of_kind = found.setdefault(_kind(prompt), [])
                of_kind.append(FoundMask(image.image_id, name, mask.segmentation, mask.score))
    for kind in (*REGION_KINDS, EXEMPLAR):
        asked = {
            (image_id, names.of_found(prompt.category_name))
            for (image_id, _), prompt in prompts.items()
            if _kind(prompt) == kind
        }
        wanted = [mask for mask in true if (mask.image_id, mask.category) in asked]
        if any(not mask.is_crowd for mask in wanted):
            yield _precision(comparison, "vgdseg", kind, wanted, found.get(kind, []))
        elif asked:
            comparison.notes.append(f"vgdseg: no {kind} stands for an object of the truth, so it has no figures")


def _visual_prompts(comparison: Comparison, task: Task) -> dict[tuple[str, str], Prompt]:
    """Return a task's prompts by image_id and prompt_id, without those that could not be asked."""
    images = comparison.run.images.values()
    every = [(image, prompt) for image in images for prompt in comparison.run.asked(image, task)]
    asked = {(image.image_id, p.prompt_id): p for image, p in every if p.prompt_id not in image.rejected}
    if rejected := len(every) - len(asked):
        comparison.notes.append(f"{task}: {counted(rejected, 'prompt')} could not be asked, left out")
    return asked


def _kind(prompt: Prompt) -> str:
    return prompt.region.kind if prompt.region else EXEMPLAR


def _true_masks(comparison: Comparison, truth: InstanceTruth, names: CountedNames, task: Task) -> Iterator[TrueMask]:
    """Yield the true masks of the images that were asked a task, without those of categories they were not asked."""
    for file_name, image in comparison.run.images_asked(task).items():
        unasked = comparison.unasked(image, task, names)
        for one in truth.objects(file_name):
            if names.is_counted(one.category) and one.category not in unasked:
                yield TrueMask(image.image_id, one.category, one.segmentation, one.is_crowd)


def _precision(
    comparison: Comparison, task: Task, group: str, true: Sequence[TrueMask], found: Sequence[FoundMask]
) -> TaskFigures:
    precision = mask_average_precision(true, found)
    rows: dict[str, dict[str, float | int | None]] = {
        row.category: {
            "AP": row.ap, "AP50": row.ap50, "AP75": row.ap75, "true": row.num_truth, "found": row.num_found
        }
        for row in precision.categories
    }  # fmt: skip
    counts = {name: sum(int(row[name] or 0) for row in rows.values()) for name in ("true", "found")}
    figures: dict[str, float | int | None] = {"AP": precision.ap, "AP50": precision.ap50, "AP75": precision.ap75}
    if comparison.score is None:
        return TaskFigures(task=task, group=group, figures=figures | counts, categories=rows, curves=precision.curves)
    decisions = decide(true, found, None if comparison.score == "best" else comparison.score)
    for name, decision in decisions.categories.items():
        best = decisions.best.get(name)
        rows[name] |= _decision(decision)
        if comparison.score != "best":
            rows[name]["best F1"] = best.f1 if best else None
        rows[name]["best score"] = best.score if best else None
    return TaskFigures(
        task=task,
        group=group,
        figures=figures | counts | _decision(decisions.whole),
        categories=rows,
        curves=precision.curves,
        confusion=tuple(asdict(pair) for pair in decisions.confusion),
        scores=tuple({"score": step.score, **_decision(step)} for step in decisions.curve),
    )


def _decision(decision: Decision) -> dict[str, float | int | None]:
    return {"precision": decision.precision, "recall": decision.recall, "F1": decision.f1}


def map_figures(comparison: Comparison, truth: PanopticTruth, task: Task) -> Iterator[TaskFigures]:
    """Yield PQ, SQ and RQ of a panoptic task (all, things, stuff), or mIoU of a semantic one.

    Images are read, compared and dropped one by one.
    """
    names = comparison.names(task, list(truth.categories))
    maps = _map_pairs(comparison, truth, task, names)
    if task not in PANOPTIC_TASKS:
        semantic = semantic_iou(maps)
        rows = {row.category: {"IoU": row.iou, "true pixels": row.num_true_pixels} for row in semantic.categories}
        yield TaskFigures(task=task, figures={"mIoU": semantic.miou}, categories=rows)
        return
    stuff = [name for name, is_thing in truth.categories.items() if not is_thing and names.is_counted(name)]
    quality = panoptic_quality(maps, stuff=stuff)
    categories = {
        row.category: {
            **_quality(row.quality),
            "true": row.num_matched + row.num_true_only,
            "found": row.num_matched + row.num_found_only,
        }
        for row in quality.categories
    }
    yield TaskFigures(task=task, figures=_quality(quality.all), categories=categories)
    for group, part in (("things", quality.things), ("stuff", quality.stuff)):
        if part is not None:
            yield TaskFigures(task=task, group=group, figures=_quality(part))


def _quality(quality: Quality) -> dict[str, float | int | None]:
    return {"PQ": quality.pq, "SQ": quality.sq, "RQ": quality.rq}


def _map_pairs(comparison: Comparison, truth: PanopticTruth, task: Task, names: CountedNames) -> Iterator[Maps]:
    file_names = {image.image_id: file_name for file_name, image in comparison.run.images.items()}
    for image, masks in comparison.found(task):
        true, unasked = truth.segments(file_names[image.image_id]), comparison.unasked(image, task, names)
        if true is None:
            continue
        yield (
            [Segment(name, mask.segmentation) for mask in masks if (name := names.of_found(mask.category)) is not None],
            [one for one in true if names.is_counted(one.category) and one.category not in unasked],
        )


def phrase_figures(comparison: Comparison, truth: PhraseTruth, tasks: Sequence[Task]) -> Iterator[TaskFigures]:
    """Yield cIoU and gIoU of refseg and reaseg, cIoU and mIoU of intseg (all and by kind), mIoU and AP50 of gcgseg."""
    asked = _entries_by_task(comparison, truth)
    for task in tasks:
        if task == "gcgseg":
            yield from _caption_figures(comparison, truth)
        elif entries := asked.get(task):
            yield from _one_by_one(comparison, task, entries)


_Entry = tuple[LabeledImage, Prompt, TruePhrase]


def _entries_by_task(comparison: Comparison, truth: PhraseTruth) -> dict[Task, list[_Entry]]:
    """Return the truth's entries for labeled images, by task, each with a prompt that asks for it."""
    asked: dict[Task, list[_Entry]] = {}
    num_unasked = 0
    for entry in truth.phrases:
        image = comparison.run.images.get(entry.file_name)
        if image is None or entry.task == "gcgseg":
            continue
        # An entry without a task may be asked for by prompts of several tasks.
        prompts = [
            prompt
            for task in ((entry.task,) if entry.task else _ASKED_ONE_BY_ONE)
            for prompt in comparison.run.asked(image, task)
            if _asks_for(prompt, entry) and prompt.prompt_id not in image.rejected
        ]
        num_unasked += not prompts
        for prompt in prompts:
            asked.setdefault(prompt.task, []).append((image, prompt, entry))
    if num_unasked:
        comparison.notes.append(
            f"{num_unasked:,} of {len(truth.phrases):,} entries of the truth were never asked of their image, left out"
        )
    return asked


def _asks_for(prompt: Prompt, entry: TruePhrase) -> bool:
    if entry.phrase is None:
        return prompt.prompt_id == entry.prompt_id
    return prompt.task in SENTENCE_TASKS and prompt.text.strip().lower() == entry.phrase.strip().lower()


def _one_by_one(comparison: Comparison, task: Task, entries: Sequence[_Entry]) -> Iterator[TaskFigures]:
    wanted = {(image.image_id, prompt.prompt_id) for image, prompt, _ in entries}
    best: dict[tuple[str, str], Found] = {}
    for image, masks in comparison.found(task):
        # Ascending, so that the best of several masks is the one that stays.
        for found in sorted(masks, key=lambda mask: mask.score):
            if (key := (image.image_id, found.prompt_id)) in wanted:
                best[key] = found
    groups: dict[str, list[tuple[Rle | None, Rle, Rle | None]]] = {"": []}
    for image, prompt, entry in entries:
        mask = best.get((image.image_id, prompt.prompt_id))
        pair = (mask.segmentation if mask else None, entry.segmentation, entry.ignored)
        groups[""].append(pair)
        if prompt.region is not None:
            groups.setdefault(prompt.region.kind, []).append(pair)
    mean = "mIoU" if task == "intseg" else "gIoU"
    for group, pairs in groups.items():
        iou = referring_iou([pair[:2] for pair in pairs], ignored=[pair[2] for pair in pairs])
        yield TaskFigures(task=task, group=group, figures={"cIoU": iou.ciou, mean: iou.giou, "true": len(pairs)})


def _caption_figures(comparison: Comparison, truth: PhraseTruth) -> Iterator[TaskFigures]:
    """Compare only the masks: to which phrase of the caption each belongs does not matter."""
    true: dict[str, list[Rle]] = {}
    for entry in truth.phrases:
        if entry.task == "gcgseg" and entry.file_name in comparison.run.images:
            masks = true.setdefault(comparison.run.images[entry.file_name].image_id, [])
            # An entry with an empty mask only makes its image count: whatever is found there is wrong.
            masks += [entry.segmentation] if rle.area(entry.segmentation) else []
    if not any(true.values()):
        return
    pairs = [
        ([mask.segmentation for mask in masks], true[image.image_id])
        for image, masks in comparison.found("gcgseg")
        if image.image_id in true
    ]
    quality = grounded_caption_quality(pairs)
    counts = {"true": sum(len(wanted) for _, wanted in pairs), "found": sum(len(found) for found, _ in pairs)}
    yield TaskFigures(task="gcgseg", figures={"mIoU": quality.miou, "AP50": quality.ap50, **counts})
