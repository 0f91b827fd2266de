"""The export formats, one module for each."""
