"""Post-processing: from logits to masks at the original size of an image, in bounded memory."""
