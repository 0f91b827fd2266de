"""Converts a checkpoint of the reference implementation to a `from_pretrained` folder, and back.

    python -m xsam_model.convert_xsam_to_hf --checkpoint pytorch_model.bin --text-model DIR --vision-model DIR \\
        --mask-encoder DIR --output DIR
    python -m xsam_model.convert_xsam_to_hf --reverse --checkpoint DIR --output pytorch_model.bin

Everything is checked before anything is written, and the output appears whole or not at all.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.conversion.base_models import read_base_models, read_json, set_dtype
from xsam_model.conversion.checkpoint_keys import (
    KEY_MAP,
    ExpectedTensors,
    KeyReport,
    check_report,
    compare,
    from_hf,
    to_hf,
)
from xsam_model.conversion.checkpoints import Checkpoint, CheckpointError, TensorInfo, open_checkpoint, open_folder
from xsam_model.conversion.new_output import check_new_file, check_new_folder, new_output
from xsam_model.conversion.weight_files import hash_file, plan_shards, write_shards, write_single
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.saving.model_card import ConversionFacts, ModelFacts, model_card

DTYPES = ("auto", "bfloat16", "float16", "float32")
_BASES = {"text_model": "language model", "vision_model": "vision tower", "mask_encoder": "mask encoder"}
_SINGLE_SUFFIXES = (".bin", ".pt", ".pth", ".safetensors")
_HUB_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Settings of a conversion.

    Attributes:
        checkpoint: weight file, see `open_checkpoint`.
        text_model, vision_model, mask_encoder: folders of the base models, see `read_base_models`.
        output: folder to write; must be missing or empty.
        config: JSON file with fields of `XSamConfig`, or None.
        dtype: one of `DTYPES`; "auto" keeps the dtype of every tensor.
        max_shard_size: most bytes in one file, such as "2GB".
        ignore_unexpected: leave out keys that the model does not use instead of refusing them.
    """

    checkpoint: Path
    text_model: Path
    vision_model: Path
    mask_encoder: Path
    output: Path
    config: Path | None = None
    dtype: str = "auto"
    max_shard_size: str = "2GB"
    ignore_unexpected: bool = False

    def command(self) -> str:
        """Return the command line for the model card, without the paths of this machine."""
        words = ["python", "-m", "xsam_model.convert_xsam_to_hf"]
        for name in ("checkpoint", "text_model", "vision_model", "mask_encoder", "output", "config"):
            path = getattr(self, name)
            if path is not None:
                words += [f"--{name.replace('_', '-')}", path.name or "."]
        words += ["--dtype", self.dtype, "--max-shard-size", self.max_shard_size]
        return shlex.join(words + ["--ignore-unexpected"] * self.ignore_unexpected)


def convert(conversion: Conversion, tell: Callable[[str], None] = print) -> None:
    """Write a `from_pretrained` folder: weights, configuration, tokenizer, processor and model card.

    Args:
        conversion: what to convert.
        tell: receives notices for the user.

    Raises:
        CheckpointError: if something does not fit; the output is untouched.
    """
    check_new_folder(conversion.output)
    overrides = read_json(conversion.config) if conversion.config else {}
    checkpoint = open_checkpoint(conversion.checkpoint)
    config, processor, notices = read_base_models(
        conversion.text_model, conversion.vision_model, conversion.mask_encoder, overrides
    )
    expected = ExpectedTensors.of(config)
    report = compare(checkpoint, expected, reference_names=True)
    check_report(report, checkpoint, expected, ignore_unexpected=conversion.ignore_unexpected)
    theirs = from_hf({name: name for name in expected.shapes})
    names = {ours: source for source, ours in theirs.items() if source in checkpoint.tensors}
    targets = _targets(checkpoint, names, expected, conversion.dtype)
    for notice in [*notices, *_notices(report, checkpoint, expected)]:
        tell(notice)
    plan = plan_shards(targets, conversion.max_shard_size)
    main_dtype = _main_dtype(targets)
    set_dtype(config, main_dtype)
    config.architectures = [XSamForSegmentation.__name__]
    with new_output(conversion.output, _total(targets)) as folder:
        folder.mkdir()
        write_shards(checkpoint, names, targets, plan, folder)
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        card = model_card(_facts(conversion, config, processor, targets, main_dtype))
        (folder / "README.md").write_text(card, encoding="utf-8")
    tell(f"{conversion.output}: {len(targets)} tensors, {_total(targets):,} bytes, {_short(main_dtype)}")


def revert(folder: Path, output: Path, tell: Callable[[str], None] = print) -> None:
    """Write one weight file with the names of the reference implementation.

    Args:
        folder: `from_pretrained` folder.
        output: file to write, .bin or .safetensors; must not exist.
        tell: receives notices for the user.

    Raises:
        CheckpointError: if something does not fit; the output is untouched.
    """
    if output.suffix not in _SINGLE_SUFFIXES:
        raise CheckpointError(f"--output: {output} must end in {', '.join(_SINGLE_SUFFIXES)}")
    check_new_file(output)
    checkpoint = open_folder(folder)
    config = _read_own_config(folder)
    expected = ExpectedTensors.of(config)
    check_report(compare(checkpoint, expected, reference_names=False), checkpoint, expected)
    ours = {name: checkpoint.tensors[name] for name in expected.shapes if name in checkpoint.tensors}
    targets = from_hf(ours)
    names = dict(zip(targets, ours, strict=True))
    with new_output(output, _total(targets)) as temporary:
        write_single(checkpoint, names, targets, temporary)
    tell(f"{output}: {len(targets)} tensors, {_total(targets):,} bytes")


def _targets(
    checkpoint: Checkpoint, names: dict[str, str], expected: ExpectedTensors, dtype: str
) -> dict[str, TensorInfo]:
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    targets = {}
    for name, source in names.items():
        found = checkpoint.tensors[source].dtype
        # Modules that compute in float32 keep float32 weights: rounding them here could not be undone.
        keep = chosen is not None and name in expected.full_precision and found.itemsize > chosen.itemsize
        targets[name] = TensorInfo(expected.shapes[name], found if keep or chosen is None else chosen)
    return targets


def _notices(report: KeyReport, checkpoint: Checkpoint, expected: ExpectedTensors) -> list[str]:
    shapes = from_hf(expected.shapes)
    notices = [
        f"{name}: keeping {shapes[name][0]} of {checkpoint.tensors[name].shape[0]} rows" for name in report.shrunk
    ]
    left_out = [*report.unexpected, *report.derived]
    if left_out:
        notices.append(f"left out, since the model has no use for them: {', '.join(left_out)}")
    return notices


def _main_dtype(targets: dict[str, TensorInfo]) -> torch.dtype:
    # By bytes, not by tensors: norms are many and small.
    weights: Counter[torch.dtype] = Counter()
    for info in targets.values():
        weights[info.dtype] += info.nbytes
    return weights.most_common(1)[0][0]


def _facts(
    conversion: Conversion,
    config: XSamConfig,
    processor: XSamProcessor,
    targets: dict[str, TensorInfo],
    dtype: torch.dtype,
) -> ModelFacts:
    return ModelFacts(
        vision_size=config.vision_config.image_size,
        mask_size=config.mask_encoder_config.image_size,
        max_text_length=processor.max_text_length,
        conversion=ConversionFacts(
            num_parameters=sum(torch.Size(info.shape).numel() for info in targets.values()),
            num_bytes=_total(targets),
            dtype=_short(dtype),
            bases=[(part, _base_name(getattr(conversion, name))) for name, part in _BASES.items()],
            checkpoint=conversion.checkpoint.name,
            sha256=hash_file(conversion.checkpoint),
            command=conversion.command(),
        ),
    )


def _base_name(folder: Path) -> str:
    """Return "owner/model" for a folder in the Hugging Face cache, else the folder's name."""
    cached = _HUB_CACHE.search(f"{folder.resolve().as_posix()}/")
    return f"{cached[1]}/{cached[2]}" if cached else folder.resolve().name


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _total(targets: dict[str, TensorInfo]) -> int:
    return sum(info.nbytes for info in targets.values())


def _read_own_config(folder: Path) -> XSamConfig:
    kind = read_json(folder / "config.json").get("model_type")
    if kind != XSamConfig.model_type:
        raise CheckpointError(f"{folder} holds a model of type {kind!r}, not {XSamConfig.model_type!r}")
    try:
        return XSamConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used: {error}") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m xsam_model.convert_xsam_to_hf",
        description="Convert a checkpoint of the X-SAM reference implementation to a from_pretrained folder, or back.",
    )

    def add(name: str, help_text: str, **options: Any) -> None:
        parser.add_argument(name, help=help_text, **options)

    add("--checkpoint", "file of weights; with --reverse, the folder", type=Path, required=True)
    add(
        "--output",
        "folder to write, missing or empty; with --reverse, a .bin or .safetensors file",
        type=Path,
        required=True,
    )
    add("--text-model", "folder of the base language model: config.json and tokenizer", type=Path)
    add("--vision-model", "folder of the base vision tower: config.json", type=Path)
    add("--mask-encoder", "folder of the base SAM: config.json", type=Path)
    add("--config", "JSON file with fields of XSamConfig for a model of other sizes", type=Path)
    add("--dtype", "type of the weights to write; auto keeps what the checkpoint has (default)", choices=DTYPES)
    add("--max-shard-size", "most bytes in one file of weights, 2GB by default")
    add("--ignore-unexpected", "leave out keys that the model does not have", action="store_true")
    add("--reverse", "convert a folder back to the reference implementation's file", action="store_true")
    options = parser.parse_args(arguments)
    forward = ("text_model", "vision_model", "mask_encoder", "config", "dtype", "max_shard_size", "ignore_unexpected")
    given = [f"--{name.replace('_', '-')}" for name in forward if getattr(options, name)]
    missing = [f"--{name.replace('_', '-')}" for name in _BASES if not getattr(options, name)]
    if options.reverse and given:
        parser.error(f"--reverse goes without {', '.join(given)}")
    if not options.reverse and missing:
        parser.error(f"missing: {', '.join(missing)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 if the output was written, 2 if it could not be, 130 if interrupted; a failure leaves nothing behind.
    """
    options = vars(_parse(arguments))
    try:
        if options.pop("reverse"):
            revert(options["checkpoint"], options["output"])
        else:
            convert(Conversion(**{name: value for name, value in options.items() if value is not None}))
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    # SIGTERM raises KeyboardInterrupt too, so that the temporary folder is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

__all__ = ["DTYPES", "KEY_MAP", "Conversion", "convert", "from_hf", "main", "revert", "to_hf"]
