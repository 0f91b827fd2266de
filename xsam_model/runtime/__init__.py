"""Machine-level tuning for the network: CUDA streams and host memory allocation."""
