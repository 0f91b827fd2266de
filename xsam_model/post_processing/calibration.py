"""Turns scores into probabilities by a temperature and an offset of their logits (Platt scaling), for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """A strictly increasing map of scores in [0, 1], which leaves 0, 1 and every ranking as they are.

    Attributes:
        temperature: above 0; the logit of a score is divided by it.
        offset: is added to that.
    """

    temperature: float = 1.0
    offset: float = 0.0

    def of(self, scores: Tensor) -> Tensor:
        """Return the calibrated scores, of the same shape, dtype and device."""
        if self == NOT_CALIBRATED:
            return scores
        # In double precision: float32 would make ties of scores near 1.
        logits = torch.logit(scores.double().clamp(0, 1))
        return torch.sigmoid(logits / self.temperature + self.offset).to(scores.dtype)

    def before(self, score: float) -> float:
        """Return the score in [0, 1] that becomes this one."""
        if self == NOT_CALIBRATED or not 0 < score < 1:
            return score
        logit = (math.log(score / (1 - score)) - self.offset) * self.temperature
        return 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))


NOT_CALIBRATED = ScoreCalibration()


def calibration_of(settings: Mapping[str, Mapping[str, float]] | None, task: str) -> ScoreCalibration:
    """Return the calibration of a task by `XSamConfig.score_calibration`; one that changes nothing if it has none."""
    fields = (settings or {}).get(task)
    return NOT_CALIBRATED if fields is None else ScoreCalibration(**fields)
