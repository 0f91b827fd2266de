"""Losses: matching of queries to ground-truth masks, and the costs of classes, masks and words."""
