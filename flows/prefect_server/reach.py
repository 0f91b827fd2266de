"""Finds the Prefect server that the settings name, and checks that one can be run where none is named."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryFile

from pipelines.errors import UserError


class PrefectUnreachableError(UserError, RuntimeError):
    """The Prefect server that the settings name does not answer, or none can be run here."""


def may_name_server() -> bool:
    """Return whether Prefect's settings may name a server. To ask Prefect takes seconds; this does not import it."""
    if "prefect" in sys.modules or any(
        name.upper().startswith(("PREFECT_API", "PREFECT_PROFILE")) for name in os.environ
    ):
        return True
    texts = [file.read_bytes().lower() for file in (_home() / "profiles.toml", Path(".env")) if file.is_file()]
    return Path("prefect.toml").exists() or any(b"prefect" in text for text in texts) or _is_in_project()


def _is_in_project() -> bool:
    """Return whether a pyproject.toml has settings of Prefect; mentioning it among what is to be installed is none."""
    try:
        return "prefect" in tomllib.loads(Path("pyproject.toml").read_text()).get("tool", {})
    except OSError:
        return False
    except ValueError:  # Prefect may read it all the same
        return True


def _home() -> Path:
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()


def reach_named_server() -> bool:
    """Check that the Prefect server of PREFECT_API_URL answers; False if none is named.

    Raises:
        PrefectUnreachableError: it does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        return False
    with get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
    if failure is not None:
        raise PrefectUnreachableError(
            f"the Prefect server at {url} does not answer ({failure}); start it, unset PREFECT_API_URL to run on an "
            "embedded one, or run with --no-prefect"
        )
    return True


def check_home(home: Path | None = None) -> None:
    """Check that the embedded server can write to its folder.

    Args:
        home: the folder; by default that of the environment, for settings that name no other.

    Raises:
        PrefectUnreachableError: the folder cannot be written.
    """
    home = home or _home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise PrefectUnreachableError(
            f"the embedded Prefect server cannot be started ({error}); it needs a folder that it can write: set "
            "PREFECT_HOME to one, or run with --no-prefect"
        ) from error
