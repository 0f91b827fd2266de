"""When and why: configuration, the Prefect flow and the command line. Never imports the network or Ray."""
