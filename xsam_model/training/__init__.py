"""Training of X-SAM: samples, batches, losses, the three stages and the loop. Inference needs nothing of it."""
