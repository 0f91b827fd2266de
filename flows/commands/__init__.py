"""The commands of xsam-label: each parses its arguments, makes one call, and shows the result."""
