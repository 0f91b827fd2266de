"""Plan and carry out a run, with or without Prefect, and decide which runs an output needs."""
