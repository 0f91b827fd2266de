"""The commands that compare an output: with ground truth (`evaluate`), a person's check (`audit`), another (`diff`)."""
