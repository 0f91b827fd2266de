"""Measured answers to questions about speed and memory: ``python -m benchmarks``. Each module answers one."""
