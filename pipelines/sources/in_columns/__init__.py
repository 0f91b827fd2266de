"""Many images that a source names, taken as columns: what is plain at once, the rest one by one."""
