"""Training from the command line, and output tables as training data. No Ray."""
