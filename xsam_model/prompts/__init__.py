"""Prompts and answers: wordings around conditions, visual prompts as masks, and the parsing of generated text."""
