"""What this process and its children find in their environment; set before Prefect, Ray or a client is loaded."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def prepare_environment() -> None:
    """Set what the command line's processes are to find; what the user has set stays as it is."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # every event that its server did not get
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    spare_loopback(os.environ)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Let no request to this machine itself go through a proxy: Prefect's own server could not be reached there.

    Without a proxy nothing changes: on macOS the variable alone would hide the system's proxies from Python.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    # Which of the two a client reads, and which wins, is up to the client.
    held = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = dict.fromkeys(host.strip() for value in held for host in value.split(",") if host.strip())
    if "*" not in hosts:
        hosts |= dict.fromkeys(_LOOPBACK)
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
