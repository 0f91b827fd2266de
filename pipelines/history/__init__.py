"""The history of an output, gathered: what many finished runs have planned, read in as few requests as of one."""
