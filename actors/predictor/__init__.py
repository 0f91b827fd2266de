"""The predictor, between the network and the data: takes images and prompts, returns RLE masks and text. No Ray."""
