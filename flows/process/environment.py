"""Set environment variables for this process and its children, before Prefect, Ray or a storage client is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def prepare_environment() -> None:
    """Set the variables for the command line's processes; those that the user has set are not changed."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # it logs every event its server did not get
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    spare_loopback(os.environ)


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Exempt loopback addresses from proxies, or the embedded Prefect server could not be reached.

    Without a proxy nothing is changed: on macOS the variable alone would hide the system's proxies from Python.
    """
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    # Clients differ in which of the two they read, and in which one wins: set both alike.
    held = [environment.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = dict.fromkeys(host.strip() for value in held for host in value.split(",") if host.strip())
    if "*" not in hosts:
        hosts |= dict.fromkeys(_LOOPBACK)
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(hosts)
