"""What is asked about scenes, with its exact answer."""
