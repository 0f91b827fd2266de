"""Images: encoded bytes to pixels, within bounds, ahead of the model."""
