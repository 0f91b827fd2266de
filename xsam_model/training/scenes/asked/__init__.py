"""Questions about scenes of every task, with exact answers."""
