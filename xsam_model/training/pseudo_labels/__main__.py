"""Label photographs that nobody outlined, to train prompts on: `xsam_model.training.datasets.coco:visual_prompts`.

python -m xsam_model.training.pseudo_labels --output DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from xsam_model.conversion.checkpoints import CheckpointError
from xsam_model.conversion.new_output import check_new_folder
from xsam_model.training.pseudo_labels.label import write_pseudo_labels
from xsam_model.training.pseudo_labels.photographs import fetch_photographs, read_photographs
from xsam_model.training.pseudo_labels.salience import Pixels, U2Net, fetch_networks

DOWNLOADS = Path("~/.cache/xsam-label/pseudo-labels")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 if photographs were missing or unreadable; 2 if nothing could be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.training.pseudo_labels", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    parser.add_argument("--photos", type=Path, help="folder of photographs (default: free ones, which are fetched)")
    parser.add_argument("--downloads", type=Path, default=DOWNLOADS, help="keep what is fetched here (%(default)s)")
    parser.add_argument("--agreement", type=float, default=0.85, help="least IoU of both networks (%(default)s)")
    options = parser.parse_args(arguments)
    downloads = options.downloads.expanduser()
    try:
        check_new_folder(options.output)
        if options.photos is not None and not options.photos.is_dir():
            raise ValueError(f"--photos: {options.photos} is no folder")
        networks = [U2Net(path) for path in fetch_networks(downloads / "networks")]
        photos = options.photos or downloads / "photographs"
        missing = [] if options.photos else fetch_photographs(photos)
        photographs = _counted(read_photographs(photos, missing))
        windows, masks = write_pseudo_labels(photographs, networks, options.output, least_agreement=options.agreement)
    except (CheckpointError, ValueError, RuntimeError, OSError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print("\n".join([f"{options.output}: {masks} masks in {windows} windows", *(f"left out: {x}" for x in missing)]))
    return 1 if missing else 0


def _counted(photographs: Iterator[tuple[str, Pixels]]) -> Iterator[tuple[str, Pixels]]:
    """Say how far it is: a photograph takes half a minute."""
    for number, (name, pixels) in enumerate(photographs, 1):
        print(f"{number}: {name}", file=sys.stderr)
        yield name, pixels


if __name__ == "__main__":
    sys.exit(main())
