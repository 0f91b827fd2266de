"""Prefect's side of a run: its embedded server, what it is told, and what it keeps of the log."""
