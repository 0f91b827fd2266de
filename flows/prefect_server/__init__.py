"""The connection to Prefect: an embedded server, reports of runs, and redaction of the logs that it keeps."""
