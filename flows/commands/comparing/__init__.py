"""The commands that compare an output with ground truth (`evaluate`) or with another (`diff`)."""
