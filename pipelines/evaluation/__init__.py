"""Evaluate a run against ground truth: metrics for every task, and plots of them."""

from pipelines.evaluation.evaluate import evaluate_output

__all__ = ["evaluate_output"]
