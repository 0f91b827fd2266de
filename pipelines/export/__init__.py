"""An output in the formats of other tools: what is chosen, and where it is written."""
