"""Train from the command line: `python -m xsam_model.training --config FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from xsam_model.training.loop.launch import launch


def main() -> int:
    """Run the command.

    Returns:
        0 if the run is complete, 3 if it stopped early and can be resumed, 2 if it could not start.
    """
    parser = argparse.ArgumentParser(prog="python -m xsam_model.training", description="Train X-SAM.")
    parser.add_argument("--config", "-c", type=Path, required=True, help="TOML file with the run's settings.")
    parser.add_argument("--output", help="Folder of the run, instead of the file's.")
    parser.add_argument("--max-minutes", type=float, help="Save and stop after so long, instead of the file's.")
    parser.add_argument("--processes", type=int, default=1, help="Training processes on this machine.")
    arguments = parser.parse_args()
    try:
        return launch(arguments.config, arguments.output, arguments.max_minutes, arguments.processes)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
