"""The address of `read_ground_truth` up to version 0.1.0; it is defined in `pipelines.evaluation.ground_truth`."""

from pipelines.evaluation.ground_truth import read_ground_truth

__all__ = ["read_ground_truth"]
