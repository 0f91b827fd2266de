"""Masks for photographs that nobody outlined: where two sizes of a salient-object network agree."""
