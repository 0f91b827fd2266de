"""Where `read_ground_truth` lay until 0.1.0: it is in `pipelines.evaluation.ground_truth` now."""

from pipelines.evaluation.ground_truth import read_ground_truth

__all__ = ["read_ground_truth"]
