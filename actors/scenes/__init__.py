"""Evaluates models on synthetic scenes that no training has seen."""
