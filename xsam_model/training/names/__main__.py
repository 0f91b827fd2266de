"""Give a model with a pretrained trunk a name head: the trunk's classifier, and which names go with its classes.

python -m xsam_model.training.names --model runs/photos/3-mixed/model --pictures FOLDER --output runs/photos/named
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xsam_model.conversion.new_output import check_new_folder
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.training.loop.start import check_model_folder
from xsam_model.training.names.assembly import read_pictures, with_name_head
from xsam_model.training.names.inputs import fetch_inputs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.training.names", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model, whose training is finished")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="folders of any photographs")
    parser.add_argument("--cuts", type=int, default=4000, help="cuts of the photographs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000, help="updates of the reader (default: %(default)s)")
    parser.add_argument("--downloads", type=Path, help="folder that keeps what is fetched")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 if nothing was written, with a message that says why.
    """
    options = _parser().parse_args(arguments)
    try:
        # Before anything is fetched.
        check_new_folder(options.output)
        check_model_folder(options.model)
        side = XSamProcessor.from_pretrained(options.model).image_processor.segmentor_size
        pictures = read_pictures(options.pictures, options.cuts, side, _note)
        with tempfile.TemporaryDirectory() as temporary:
            inputs = fetch_inputs(options.downloads or Path(temporary))
            loss = with_name_head(options.model, options.output, inputs, pictures, steps=options.steps, say=_note)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{options.output}: {options.model} with a name head, {loss:.2f} nats from its teacher")
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
