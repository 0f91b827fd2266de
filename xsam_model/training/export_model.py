"""Export a trained model as a folder to ship: weights stored in half precision, computed in full.

python -m xsam_model.training.export_model --model runs/tiny/2-mixed/model --output DIR
python -m xsam_model.training.export_model --model runs/tiny/1-segmentor/model \\
       --checkpoint runs/tiny/2-mixed/checkpoints/step-00003000 --output DIR     # of a stage that is still running
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.training.loop.checkpointing import read_weights
from xsam_model.training.loop.start import copy_notice


def export_model(model: Path, output: Path, *checkpoints: Path) -> Path:
    """Write a `from_pretrained` folder with float16 weights, half the size of the original.

    Args:
        model: folder of a trained model.
        output: folder, created if missing.
        checkpoints: checkpoints of stages that started from `model`, whose weights are exported instead; their moving
            averages, if they have any. Of several the mean, which is often better than each (model soups, arXiv
            2203.05482).

    Returns:
        The output folder. Its configuration says float32, so that the weights are widened when they are loaded: half
        precision is slow on a CPU.

    Raises:
        ValueError: if a weight does not fit float16, or a checkpoint is of another model.
    """
    network = XSamForSegmentation.from_pretrained(model, dtype=torch.float32)
    sums: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        try:
            network.load_state_dict(read_weights(checkpoint))
        except RuntimeError as error:
            raise ValueError(f"{checkpoint} is of another model than {model}: {error}") from error
        for name, value in network.state_dict().items():
            sums[name] = value / len(checkpoints) + sums.get(name, 0)
    if sums:
        network.load_state_dict(sums)
        network.config.score_calibration = None
    state = {name: value.half() for name, value in network.state_dict().items()}
    if broken := [name for name, value in state.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"these weights do not fit float16: {', '.join(broken[:8])}")
    network.save_pretrained(output, state_dict=state)
    # save_pretrained has written the dtype of the weights; that of the computation is to be float32.
    config = json.loads((output / "config.json").read_text())
    config["dtype"] = "float32"
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    XSamProcessor.from_pretrained(model).save_pretrained(output)
    copy_notice(model, output)
    return output


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.training.export_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        nargs="*",
        default=[],
        help="take the weights of a running stage's checkpoint instead; of several, their mean",
    )
    options = parser.parse_args()
    print(export_model(options.model, options.output, *options.checkpoint))


if __name__ == "__main__":
    main()
