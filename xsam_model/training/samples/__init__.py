"""From data sets to training batches: what is asked about an image, in which words, with which correct answer."""
