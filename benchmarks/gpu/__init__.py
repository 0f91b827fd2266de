"""Benchmarks that need a CUDA device; on a CPU they only show that they work (``--size tiny``)."""
