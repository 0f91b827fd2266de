"""Training behind the command line, and a finished output as training data. No Ray."""
