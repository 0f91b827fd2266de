"""Orchestration: configuration, the Prefect flow and the command line. Never imports the network or Ray."""

import os

# Prefect reads these when it is first imported. The first start of its embedded server migrates a database, which takes
# longer than its default timeout of 20 s. The other two turn off telemetry.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
