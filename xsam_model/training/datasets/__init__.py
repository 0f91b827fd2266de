"""Readers of common dataset formats, as sources of training samples; one module for each format."""
