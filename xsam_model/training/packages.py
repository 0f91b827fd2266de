"""Downloads packages with the user's npm, pip and apt, as these are set up here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command in a folder and return what it printed.

    Raises:
        RuntimeError: the command is not there, or failed; carries the end of what it said.
    """
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise RuntimeError(f"{' '.join(command)} failed: {said.strip()[-500:]}") from error


def download_wheel(package: str, folder: Path) -> Path:
    """Download a Python package, without what it depends on, and return its wheel.

    Args:
        package: NAME==VERSION.
        folder: receives the wheel; made if it is missing.

    Raises:
        RuntimeError: pip failed.
        OSError: it fetched nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", package], folder)
    return fetched(folder, "*.whl")


def fetched(folder: Path, pattern: str) -> Path:
    """Return the file that was fetched into a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    for path in folder.glob(pattern):
        return path
    raise FileNotFoundError(f"nothing was fetched that matches {pattern}")
