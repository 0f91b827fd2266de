"""This process: its environment, its two streams, and the signals that end it."""
