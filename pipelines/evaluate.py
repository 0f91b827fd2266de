"""Where `evaluate_output` lay until 0.1.0: it is in `pipelines.evaluation.evaluate` now."""

from pipelines.evaluation.evaluate import evaluate_output

__all__ = ["evaluate_output"]
