"""The training run: configuration, stages, steps, checkpoints and processes."""
