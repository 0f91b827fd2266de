"""The training run: its config, stages, steps, checkpoints and processes."""
