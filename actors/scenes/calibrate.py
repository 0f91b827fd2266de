"""Fit how a model's scores become probabilities of a right mask, on samples that it was not trained on.

python -m actors.scenes.calibrate --model xsam_model/weights/xsam-photos --config examples/calibrate_photos.toml
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from actors.scenes.evaluate import find_instances, one_mask_each
from actors.scenes.samples import reported_batches
from pipelines.errors import SourceError, UserError
from pipelines.evaluation.mask_metrics import referring_iou
from pipelines.evaluation.score_calibration import RIGHT_IOU, expected_calibration_error, right_masks
from xsam_model.post_processing.calibration import ScoreCalibration
from xsam_model.segmenter import XSamSegmenter
from xsam_model.training.loop.config import SourceConfig
from xsam_model.training.loop.start import check_model_folder
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.sources import SampleSource

_INSTANCE_TASKS = ("genseg", "ovseg", "vgdseg")
_ONE_MASK_TASKS = ("refseg", "reaseg", "intseg")
# Candidates below it are so many, and so surely wrong, that they would decide the fit of scores that people see.
_LEAST_SCORE = 0.01
# Fewer wrong or right masks in half of the samples say nothing.
_LEAST_COUNT = 10
_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True, eq=False)
class Rated:
    """Found masks.

    Attributes:
        scores: float64 (N,) in [0, 1].
        right: bool (N,), whether each shows what was asked for.
        samples: int64 (N,), number of the sample in which each was found.
    """

    scores: NDArray[np.float64]
    right: NDArray[np.bool_]
    samples: NDArray[np.int64]

    def of(self, chosen: NDArray[np.bool_]) -> Rated:
        """Return those that are chosen, (N,) bool."""
        return Rated(self.scores[chosen], self.right[chosen], self.samples[chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What was fitted to the scores of a task.

    Attributes:
        masks, right_share, mean_score: number of masks, share of those that are right, mean of their scores.
        before, after: expected calibration error of every other sample before, and with what fits the rest.
        calibration: what fits all samples; None if the error does not fall, or there is too little to tell.
    """

    masks: int
    right_share: float
    mean_score: float
    before: float
    after: float
    calibration: ScoreCalibration | None


def rate(segmenter: XSamSegmenter, task: str, batches: Iterable[Sequence[TrainingSample]]) -> Rated:
    """Ask a model about samples of one task, and say which of its masks are right, by an IoU of 0.5 or more.

    Empty masks, which runs drop, do not count, and of tasks with many candidates neither do those of very low scores.
    """
    if task in _INSTANCE_TASKS:
        truth, found = find_instances(segmenter, batches)
        scores = np.array([mask.score for mask in found], dtype=np.float64)
        samples = np.array([int(mask.image_id) for mask in found], dtype=np.int64)
        shown = scores >= _LEAST_SCORE
        kept = [mask for mask, is_shown in zip(found, shown, strict=True) if is_shown]
        return Rated(scores[shown], right_masks(truth, kept), samples[shown])
    rows = [row for batch in batches for row in one_mask_each(segmenter, batch)]
    ious = np.array([referring_iou([(true, found)]).giou for true, found, _ in rows])
    scores = np.array([score for *_, score in rows], dtype=np.float64)
    return Rated(scores, ious >= RIGHT_IOU, np.arange(len(rows))).of(scores > 0)


def fit_task(rated: Rated) -> Fit:
    """Fit a calibration to the scores of a task, and test it on samples that it was not fitted to."""
    is_tested = rated.samples % 2 == 1
    tested, rest = rated.of(is_tested), rated.of(~is_tested)
    before, after, calibration = expected_calibration_error(tested.scores, tested.right), float("nan"), None
    if all(min(np.sum(part.right), np.sum(~part.right)) >= _LEAST_COUNT for part in (tested, rest)):
        after = expected_calibration_error(_calibrated(fit_scores(rest), tested.scores), tested.right)
        calibration = fit_scores(rated) if after < before else None
    return Fit(
        masks=len(rated.scores),
        right_share=float(np.mean(rated.right)) if len(rated.right) else float("nan"),
        mean_score=float(np.mean(rated.scores)) if len(rated.scores) else float("nan"),
        before=before,
        after=after,
        calibration=calibration,
    )


def fit_scores(rated: Rated) -> ScoreCalibration:
    """Return the calibration with the greatest likelihood (Platt, 1999)."""
    from scipy.optimize import minimize
    from scipy.special import logit

    logits = logit(np.clip(rated.scores, 1e-6, 1 - 1e-6))
    signs = np.where(rated.right, -1.0, 1.0)

    def loss(parameters: NDArray[np.float64]) -> float:
        return float(np.mean(np.logaddexp(0, signs * (logits * np.exp(-parameters[0]) + parameters[1]))))

    found = minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    return ScoreCalibration(temperature=round(float(np.exp(found.x[0])), 4), offset=round(float(found.x[1]), 4))


def _calibrated(calibration: ScoreCalibration, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return calibration.of(torch.from_numpy(scores)).numpy()


def read_sources(path: Path) -> list[SampleSource]:
    """Open the [[sources]] of a TOML file, as training has them.

    Raises:
        SourceError: the file cannot be read, or one of them not be opened.
    """
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("sources", [])
        if not entries:
            raise ValueError("it has no [[sources]]")
        return [SourceConfig(**entry).open() for entry in entries]
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(f"--config: {path}: {str(error)[:300]}") from error


def draw_samples(sources: Sequence[SampleSource], count: int, seed: int) -> dict[str, list[TrainingSample]]:
    """Draw `count` samples of each source, by task; of a task that asks for one mask, with one of its questions.

    Raises:
        SourceError: a source is of a task whose scores are not calibrated.
    """
    samples: dict[str, list[TrainingSample]] = {}
    for place, source in enumerate(sources):
        order = np.random.default_rng([seed, place]).permutation(len(source))[:count]
        for number in order.tolist():
            random = np.random.default_rng([seed, place, number])
            sample = source.draw(number, random)
            if sample.task in _INSTANCE_TASKS:
                # Prompts need no names, but what is found of each has to have one.
                names = sample.conditions or tuple(map(str, range(len(sample.visual_prompts))))
                samples.setdefault(sample.task, []).append(replace(sample, conditions=names))
            elif sample.task in _ONE_MASK_TASKS:
                samples.setdefault(sample.task, []).append(_one_question(sample, random))
            else:
                known = ", ".join((*_INSTANCE_TASKS, *_ONE_MASK_TASKS))
                raise SourceError(f"source {source.name} is of the task {sample.task}; scores are fitted for {known}")
    return samples


def _one_question(sample: TrainingSample, random: np.random.Generator) -> TrainingSample:
    """Return a sample with one of its conditions or prompts, and with one mask: empty for what is not there."""
    place = int(random.integers(sample.num_conditions))
    mask = sample.masks[sample.labels == place].any(0)
    return replace(
        sample,
        conditions=sample.conditions[place : place + 1],
        visual_prompts=sample.visual_prompts[place : place + 1],
        masks=mask[None],
        labels=np.zeros(1, dtype=np.int64),
    )


def calibrate(
    segmenter: XSamSegmenter, samples: Mapping[str, Sequence[TrainingSample]], on_asked: Callable[[int], object]
) -> dict[str, Fit]:
    """Fit the scores of each task, those that the network gives: the model's calibration is off for this long."""
    config = segmenter.model.config
    old, config.score_calibration = config.score_calibration, None
    try:
        return {
            task: fit_task(rate(segmenter, task, reported_batches(some, _BATCH_SIZE, on_asked)))
            for task, some in samples.items()
        }
    finally:
        config.score_calibration = old


def write_calibration(model: Path, output: Path, fits: Mapping[str, Fit]) -> None:
    """Write a model's config.json with what was fitted; tasks that were not asked keep their calibration."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings = dict(config.get("score_calibration") or {})
    for task, fit in fits.items():
        settings.pop(task, None)
        if fit.calibration is not None:
            settings[task] = asdict(fit.calibration)
    config["score_calibration"] = settings or None
    beside = output.with_name(f".{output.name}.new")
    beside.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, output)


def _described(task: str, fit: Fit) -> str:
    found = f"{task}: {fit.masks} masks, {fit.right_share:.3f} right, mean score {fit.mean_score:.3f}"
    if fit.calibration is None:
        return f"{found}: left as it is (calibration error {fit.before:.3f}, fitted {fit.after:.3f})"
    values = f"temperature {fit.calibration.temperature}, offset {fit.calibration.offset}"
    return f"{found}: calibration error {fit.before:.3f} -> {fit.after:.3f} by {values}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m actors.scenes.calibrate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of save_pretrained")
    parser.add_argument("--config", type=Path, required=True, help="TOML file with [[sources]], as training has them")
    parser.add_argument("--output", type=Path, help="file to write (default: the model's config.json)")
    parser.add_argument("--count", type=int, default=160, help="samples of each source (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 for its choice")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 if nothing was written, with a message that says why.
    """
    options = _parser().parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        check_model_folder(options.model)
        samples = draw_samples(read_sources(options.config), options.count, options.seed)
        segmenter = XSamSegmenter.from_pretrained(options.model, device_map="auto")
        interval = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(desc="asking", total=sum(map(len, samples.values())), mininterval=interval) as bar:
            fits = calibrate(segmenter, samples, bar.update)
        write_calibration(options.model, options.output or options.model / "config.json", fits)
    except (UserError, ValueError, OSError) as error:
        sys.stderr.write(f"error: {str(error)[:500]}\n")
        return 2
    for task, fit in fits.items():
        print(_described(task, fit))
    return 0


if __name__ == "__main__":
    sys.exit(main())
