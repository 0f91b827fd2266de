"""Finds the Prefect server that the settings name, or starts an embedded one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from flows.config import ConfigError
from flows.prefect_server.embedded import embedded_server


def may_name_server() -> bool:
    """Return whether Prefect's settings may name a server. To ask Prefect takes seconds; this does not import it."""
    if any(name.upper().startswith(("PREFECT_API", "PREFECT_PROFILE")) for name in os.environ):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    files = [file for file in (home / "profiles.toml", Path("pyproject.toml"), Path(".env")) if file.is_file()]
    return Path("prefect.toml").exists() or any(b"prefect" in file.read_bytes().lower() for file in files)


def reach_named_server() -> list[AbstractContextManager[Any]]:
    """Check that the Prefect server of PREFECT_API_URL answers.

    Returns:
        A context manager with the settings under which a flow is to run; none if no server is named.

    Raises:
        ConfigError: the server does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return []
    with get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
    if failure is not None:
        raise ConfigError(
            f"the Prefect server at {url} does not answer ({failure}); start it, unset PREFECT_API_URL to run on an "
            "embedded one, or run with --no-prefect"
        )
    return [nullcontext()]


def reach_prefect() -> AbstractContextManager[Any]:
    """Check that the Prefect server of PREFECT_API_URL answers, or start an embedded one.

    Call it in a thread of begin_unharmed.

    Returns:
        A context manager with the settings under which the flow is to run.

    Raises:
        ConfigError: the server does not answer, or cannot be started.
    """
    if named := reach_named_server():
        return named[0]
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        get_current_settings,
        temporary_settings,
    )

    settings = get_current_settings()
    _check_home(settings.home)
    # Settings made in this process would not reach the server's process otherwise.
    variables = settings.to_environment_variables(exclude_unset=True)
    try:
        server = embedded_server(variables, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the embedded Prefect server cannot be started ({error}); its database is in {settings.home}. Give it "
            "longer with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, name a server with PREFECT_API_URL, or run "
            "with --no-prefect"
        ) from error
    return temporary_settings({PREFECT_API_URL: server.api_url})


def _check_home(home: Path) -> None:
    """Check that the embedded server can write to its folder, before waiting for it to start.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError(
            f"the embedded Prefect server cannot be started ({error}); it needs a folder that it can write: set "
            "PREFECT_HOME to one, or run with --no-prefect"
        ) from error
