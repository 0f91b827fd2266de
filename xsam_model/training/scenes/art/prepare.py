"""Fetch and prepare the pictures that scenes are composed of; `docs/scenes.md` lists their origins.

python -m xsam_model.training.scenes.art.prepare --output DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from xsam_model.training.scenes.art.assets import DEFAULT_FOLDER
from xsam_model.training.scenes.art.downloads import prepare_assets


def main() -> None:
    """Fetch and prepare the assets."""
    parser = argparse.ArgumentParser(description="Fetch and prepare the pictures that scenes are made of.")
    parser.add_argument("--output", type=Path, default=DEFAULT_FOLDER, help="folder (default: %(default)s)")
    parser.add_argument("--downloads", type=Path, help="keep what is fetched here, and use what is here already")
    parser.add_argument("--photographs", action="store_true", help="also photographic cut-outs (161 MB more)")
    parser.add_argument("--no-gpl", action="store_true", help="of these, leave out what is under the GPL")
    arguments = parser.parse_args()
    gpl = not arguments.no_gpl
    print(prepare_assets(arguments.output, arguments.downloads, photographs=arguments.photographs, gpl=gpl))


if __name__ == "__main__":
    main()
