"""The seam between the network and the data: images and prompts in, RLE masks and words out. No Ray."""
