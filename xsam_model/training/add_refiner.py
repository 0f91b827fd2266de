"""Give a model a refiner, which draws the masks of visual prompts; random, for the stage "refiner" to train.

python -m xsam_model.training.add_refiner --model xsam_model/weights/xsam-photos --output runs/refiner/start
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.conversion.new_output import check_new_folder, whole_folder
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.training.loop.start import check_model_folder, copy_notice

DEFAULT_DIMS = (48, 64, 96, 96)
_ZOOM = 1.3
_SEED = 0


def add_refiner(model: Path, output: Path, dims: Sequence[int] = DEFAULT_DIMS) -> int:
    """Write a model like another with a new refiner, in place of one that it may have.

    Args:
        model: folder of the other model. If its `interactive_zoom` is None, that of the new one is 1.3.
        output: folder to write, which must not exist.
        dims: `XSamConfig.refiner_dims`.

    Returns:
        The number of the refiner's parameters.

    Raises:
        ValueError: if the numbers of channels do not fit the model.
    """
    old = XSamForSegmentation.from_pretrained(model, dtype=torch.float32)
    zoom = old.config.interactive_zoom or _ZOOM
    fields = {"interactive_zoom": zoom, "refiner_dims": list(dims), "score_calibration": None}
    config = XSamConfig(**{**old.config.to_dict(), **fields})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        new = XSamForSegmentation(config)
    kept = {name: value for name, value in old.state_dict().items() if not name.startswith("refiner.")}
    new.load_state_dict(kept, strict=False)
    with whole_folder(output) as beside:
        new.save_pretrained(str(beside))
        XSamProcessor.from_pretrained(model).save_pretrained(str(beside))
        copy_notice(model, beside)
    assert new.refiner is not None
    return sum(parameter.numel() for parameter in new.refiner.parameters())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 if nothing was written, with a message that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.training.add_refiner", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--dims",
        type=int,
        nargs="+",
        default=DEFAULT_DIMS,
        help="channels at each map of the mask encoder, finest first (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        check_new_folder(options.output)
        check_model_folder(options.model)
        count = add_refiner(options.model, options.output, options.dims)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{options.output}: {options.model} with a refiner of {count:,} parameters, which is to be trained")
    return 0


if __name__ == "__main__":
    sys.exit(main())
