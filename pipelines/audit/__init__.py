"""Audit an output: draw images for a person to check, and estimate from the check how good all its masks are."""
