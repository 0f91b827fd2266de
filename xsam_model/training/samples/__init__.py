"""From data sets to batches: what is asked about an image, in which words, with which true answer."""
