"""An output in the formats of other tools: what is chosen, where it is written, and one module for each format."""
