"""Replicas in processes of this machine, forked from one that has imported what they need. No Ray."""
