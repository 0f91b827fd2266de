"""Prompts and answers: the words around conditions, regions as masks, and what generated text says."""
