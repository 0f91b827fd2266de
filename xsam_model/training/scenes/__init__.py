"""Synthetic scenes with exact ground truth, generated on demand, and everything that can be asked about them."""
