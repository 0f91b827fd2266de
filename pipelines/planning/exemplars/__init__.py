"""Exemplars: regions of some images that show what is asked of others. Given in a config, found, and kept in a plan."""
