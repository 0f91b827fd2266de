"""The documented address of `evaluate_output` up to version 0.1.0; it is defined in `pipelines.evaluation.evaluate`."""

from pipelines.evaluation.evaluate import evaluate_output

__all__ = ["evaluate_output"]
