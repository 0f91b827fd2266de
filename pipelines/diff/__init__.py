"""Compare two runs of an output, or two outputs, mask by mask: figures, a table of what changed, a page of pictures."""
