"""Evaluate a run's table against ground truth, for every task that the truth fits.

This module ties together ground_truth.py (reads the truth), labeled_run.py (reads the table) and task_figures.py
(compares the two, task by task).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pipelines.errors import DamagedError, SourceError, some_of, some_texts
from pipelines.evaluation.ground_truth import PHRASE_TASKS, GroundTruth, InstanceTruth, PanopticTruth, PhraseTruth
from pipelines.evaluation.labeled_run import LabeledRun, is_end_of_other, read_run, runs_named
from pipelines.evaluation.task_figures import (
    Comparison,
    TaskFigures,
    instance_figures,
    map_figures,
    phrase_figures,
    visual_prompt_figures,
)
from pipelines.masks.rle import RleError
from pipelines.planning.plan import Plan
from pipelines.query.files import query_errors
from pipelines.redaction import counted, named
from pipelines.storage.store import Store
from pipelines.types import PANOPTIC_TASKS, Task

__all__ = ["Evaluation", "TaskFigures", "evaluate_output"]

_FITTING: Mapping[type[GroundTruth], tuple[Task, ...]] = {
    InstanceTruth: ("ovseg", "genseg", "vgdseg"),
    PanopticTruth: (*PANOPTIC_TASKS, "ovseg_semantic", "genseg_semantic"),
    PhraseTruth: PHRASE_TASKS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The evaluation of a run.

    Attributes:
        runs: those that have rows of the compared images.
        num_images: images that were compared.
        num_quarantined: those of them that are quarantined; nothing counts as found on them.
        results: figures by task and group.
        notes: messages about what was left out.
    """

    runs: tuple[str, ...]
    num_images: int
    num_quarantined: int
    results: tuple[TaskFigures, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def evaluate_output(
    store: Store,
    plans: Sequence[Plan],
    truth: GroundTruth,
    *,
    count_unasked: bool = False,
    where: str = "",
    score: float | Literal["best"] | None = None,
    on_image: Callable[[Task, int], None] = lambda *_: None,
) -> Evaluation:
    """Compare a run with ground truth; nothing is written.

    - Images are matched as described in ``labeled_run.read_run``. Images that only one side has are left out; on
      quarantined ones nothing counts as found.
    - Categories are matched by ``category_names.clean_name``. Those that only one side has are left out.
    - COCO instances: mask AP of ovseg and genseg, and of vgdseg by kind of prompt. COCO panoptic: PQ of ``*_panoptic``,
      mIoU of ``*_semantic``. Lists of phrases: IoU of refseg, reaseg and intseg, and of the masks of gcgseg.

    Args:
        store: the output.
        plans: the plan of one run, or those of all runs in order, to evaluate the current rows.
        truth: as ``read_ground_truth`` returns it.
        count_unasked: whether categories of the truth that were never asked count as not found. Not for vgdseg, which
            is evaluated only where there is a prompt.
        where: SQL condition on the run's masks, as for exports: those that do not fit count as not found.
        score: also tell precision, recall, F1 and confusion (COCO instances, at IoU 0.5) of keeping the masks from this
            score on, or from the score on that is best for each category.
        on_image: called after each image with its task and the number of that task's images read so far.

    Raises:
        SourceError: truth and run have no image, no task or no category in common, their masks differ in size, or an
            entry of the truth is left out that is read strictly; or the condition is none.
        StorageError: the output cannot be read.
    """
    with query_errors(store):
        return _evaluate(store, plans, truth, count_unasked=count_unasked, where=where, score=score, on_image=on_image)


def _evaluate(
    store: Store,
    plans: Sequence[Plan],
    truth: GroundTruth,
    *,
    count_unasked: bool,
    where: str,
    score: float | Literal["best"] | None,
    on_image: Callable[[Task, int], None],
) -> Evaluation:
    fitting = _FITTING[type(truth)]
    run = read_run(store, plans, truth.images, where=where)
    runs = runs_named(plans)
    tasks = [task for task in run.tasks() if task in fitting]
    if not tasks:
        raise SourceError(
            f"{truth.uri} is truth for {', '.join(fitting)}, but {runs} was asked for "
            f"{', '.join(run.tasks()) or 'nothing'}"
        )
    run = _of_same_size(run, truth)
    comparison = Comparison(run=run, count_unasked=count_unasked, score=score, on_image=on_image)
    comparison.notes.extend(_image_notes(run, plans, len(truth.images)))
    try:
        results = tuple(_results(comparison, truth, tasks))
    except SourceError:
        raise
    except RleError as error:  # the truth's masks were checked when they were read
        raise DamagedError(
            f"{store.uri}: a mask of {runs} cannot be decoded ({error}); verify names what is damaged"
        ) from error
    except ValueError as error:
        why = "; ".join((str(error), *truth.left_out.notes()))
        raise SourceError(f"{runs} cannot be compared with {truth.uri}: {why}") from error
    comparison.notes.extend(truth.left_out.notes())
    if score is not None and not any(result.scores for result in results):
        comparison.notes.append("precision, recall and F1 at a score are told of COCO instances alone")
    if not results:
        raise SourceError(f"{truth.uri} has no entry for what {runs} was asked: {'; '.join(comparison.notes)}")
    return Evaluation(
        runs=run.runs,
        num_images=len(run.images),
        num_quarantined=sum(image.reason is not None for image in run.images.values()),
        results=results,
        notes=tuple(comparison.notes),
    )


def _results(comparison: Comparison, truth: GroundTruth, tasks: list[Task]) -> Iterator[TaskFigures]:
    if isinstance(truth, PhraseTruth):
        yield from phrase_figures(comparison, truth, tasks)
        return
    for task in tasks:
        if isinstance(truth, PanopticTruth):
            yield from map_figures(comparison, truth, task)
        elif task == "vgdseg":
            yield from visual_prompt_figures(comparison, truth)
        else:
            yield from instance_figures(comparison, truth, task)


def _of_same_size(run: LabeledRun, truth: GroundTruth) -> LabeledRun:
    """Leave out the images whose size in the truth is another than labeled.

    Raises:
        SourceError: all of them are, or one is and the truth is read strictly.
    """
    kept, sizes, last = dict(run.images), truth.images, ""
    for name, image in run.images.items():
        if image.size_hw is not None and image.size_hw != sizes[name]:
            del kept[name]
            (height, width), labeled = sizes[name], image.size_hw
            last = f"{width} x {height} pixels there, {labeled[1]} x {labeled[0]} labeled"
            reason = "another size than labeled, where sizes are those after EXIF orientation"
            truth.left_out.add(f"image {name}", reason, last)
    if kept or not run.images:
        return replace(run, images=kept)
    raise SourceError(
        f"none of {counted(len(run.images), 'image')} has the size in the truth that it was labeled with, e.g. "
        f"{next(iter(run.images))}: {last}. Labels are of the image after EXIF orientation"
    )


def _image_notes(run: LabeledRun, plans: Sequence[Plan], num_true: int) -> Iterator[str]:
    if run.num_forgotten:
        yield f"{counted(run.num_forgotten, 'image was', 'images were')} forgotten on request, left out"
    if len(plans) == 1 and run.num_images + run.num_forgotten < plans[0].num_images:
        yield f"the run is not finished: {run.num_images:,} of {counted(plans[0].num_images, 'image')} are labeled"
    if run.missing:
        yield (
            f"{len(run.missing):,} of {counted(num_true, 'image')} of the truth are not labeled, left out: "
            f"{some_of(run.missing)}"
        )
    if elsewhere := [(name, i.image_id) for name, i in run.images.items() if not is_end_of_other(name, i.image_id)]:
        pairs = [f"{named(name)} with {named(image_id)}" for name, image_id in elsewhere]
        yield (
            f"{counted(len(pairs), 'image lies in another folder', 'images lie in other folders')} "
            f"in the truth, compared by base name: {some_texts(pairs)}"
        )
    if others := run.num_images - len(run.images):
        yield f"{others:,} of {run.num_images:,} labeled images are not in the truth, left out"
    reasons = Counter(image.reason for image in run.images.values() if image.reason)
    if reasons:
        counts = ", ".join(f"{number:,} {reason}" for reason, number in sorted(reasons.items()))
        yield f"nothing is found on {counted(reasons.total(), 'quarantined image')}: {counts}"
