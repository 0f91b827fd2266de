"""A run against ground truth: the figures of every task, and their plots."""

from pipelines.evaluation.evaluate import evaluate_output

__all__ = ["evaluate_output"]
