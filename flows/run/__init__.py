"""One run of an output, planned and labelled to its end, with Prefect or without; and which runs an output needs."""
