"""The driver's process: its environment, its standard streams, and the signals that end it."""
