"""Masks: run-length encoding, regions that ask for one, and pictures of them."""
