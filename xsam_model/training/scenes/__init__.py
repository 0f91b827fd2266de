"""Scenes: pictures with exact truth, made as they are needed, and everything that can be asked about them."""
