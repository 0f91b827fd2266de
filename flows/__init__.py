"""When and why: configuration, the Prefect flow and the command line. Never imports the network or Ray."""

import os

# Prefect reads these when it is first imported. Its embedded server migrates a database at its first start, which takes
# longer than its own time limit; and nothing of a run is reported to anybody.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
