"""Decode images within limits on size, time and memory, ahead of the model."""
