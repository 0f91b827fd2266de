"""The layers of the network that transformers does not have, or has slower."""
