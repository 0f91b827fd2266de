"""Training of X-SAM: samples, batches, losses, stages and the training loop. Inference does not import it."""
