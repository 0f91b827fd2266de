"""Masks: run-length encoding, visual prompts (regions), and drawing."""
