"""Measures models on pictures that no training has seen: synthetic scenes, and photographs outlined by hand."""
