"""Builds the configuration and the processor of a checkpoint from the folders of its base models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.conversion.checkpoints import CheckpointError
from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.processing_xsam import ADDED_TOKENS, XSamProcessor, add_tokens

CONFIG_FILE = "config.json"
_PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_VISION_TYPES, _MASK_TYPES = ("siglip", "siglip_vision_model"), ("sam", "sam_vision_model")
# Fields that describe a file, not the network.
_PROVENANCE = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
_BILINEAR = 2  # PIL's code
_PARTS = ("vision_config", "mask_encoder_config", "text_config", "segmentor_config")


def read_base_models(
    text_model: Path, vision_model: Path, mask_encoder: Path, overrides: Mapping[str, Any] | None = None
) -> tuple[XSamConfig, XSamProcessor, list[str]]:
    """Build what the reference implementation builds from the same folders.

    Args:
        text_model: holds config.json and tokenizer files; X-SAM's tokens are added to the tokenizer.
        vision_model: holds config.json of a SigLIP model or of its vision tower, and optionally
            preprocessor_config.json.
        mask_encoder: the same for a SAM model or its image encoder.
        overrides: fields of `XSamConfig`, with those of its sub-configurations in nested dictionaries.

    Returns:
        Configuration, processor, and notices for the user.

    Raises:
        CheckpointError: if a file is missing, unreadable or of another kind of model, or a field is unknown.
    """
    tokenizer = _read_tokenizer(text_model)
    text = _read_config(text_model, "--text-model")
    vision = _read_tower(vision_model, "--vision-model", _VISION_TYPES)
    mask = _read_tower(mask_encoder, "--mask-encoder", _MASK_TYPES)
    seg, start, end = tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    fields: dict[str, Any] = {
        "text_config": {**_network_fields(text), "vocab_size": len(tokenizer)},
        "vision_config": _network_fields(vision),
        "mask_encoder_config": _network_fields(mask),
        "seg_token_id": seg,
        "phrase_start_token_id": start,
        "phrase_end_token_id": end,
    }
    config = _build_config(fields, overrides or {})
    notices: list[str] = []
    image_processor = XSamImageProcessor(
        **_read_preprocessor(vision_model, "vision", config.vision_config.image_size, notices),
        **_read_preprocessor(mask_encoder, "segmentor", config.mask_encoder_config.image_size, notices),
    )
    try:
        processor = XSamProcessor(
            image_processor,
            tokenizer,
            max_text_length=config.max_text_length,
            image_token_index=config.image_token_index,
            region_token_index=config.region_token_index,
            chat_format="qwen3" if config.text_config.model_type.startswith("qwen") else "phi3",
        )
    except ValueError as error:
        raise CheckpointError(f"--text-model: the tokenizer in {text_model} cannot be used: {error}") from error
    return config, processor, notices


def set_dtype(config: XSamConfig, dtype: torch.dtype) -> None:
    """Record the dtype of the weights in a configuration and all its parts."""
    for part in (config, *(getattr(config, name) for name in _PARTS)):
        part.dtype = dtype


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        CheckpointError: if the file is missing, unreadable, or holds anything but an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def _read_config(folder: Path, argument: str) -> PreTrainedConfig:
    if not folder.is_dir():
        raise CheckpointError(f"{argument}: {folder} {'is no folder' if folder.exists() else 'does not exist'}")
    kind = read_json(folder / CONFIG_FILE).get("model_type")
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"{argument}: {folder / CONFIG_FILE} is of model_type {kind!r}, unknown to transformers")
    try:
        # Code in a model folder is never run, nor is anything fetched.
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(f"{argument}: {folder / CONFIG_FILE} cannot be used: {error}") from error


def _read_tower(folder: Path, argument: str, kinds: tuple[str, str]) -> PreTrainedConfig:
    config = _read_config(folder, argument)
    if config.model_type not in kinds:
        raise CheckpointError(
            f"{argument}: {folder} holds a {config.model_type} model; X-SAM needs {' or '.join(kinds)}"
        )
    return getattr(config, "vision_config", config)


def _read_tokenizer(folder: Path) -> Any:
    # For a wrong folder "config.json does not exist" says more than the tokenizer's own error.
    _read_config(folder, "--text-model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, LookupError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"--text-model: {folder} holds no tokenizer that can be read: {reason}") from error
    add_tokens(tokenizer)
    return tokenizer


def _network_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _PROVENANCE}


def _build_config(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> XSamConfig:
    known = XSamConfig()
    merged = dict(fields)
    for name, value in overrides.items():
        if name in _PARTS:
            if not isinstance(value, dict):
                raise CheckpointError(f"--config: {name} must be an object of fields, got {value!r}")
            merged[name] = {**fields.get(name, {}), **value}
        elif hasattr(known, name):
            merged[name] = value
        else:
            raise CheckpointError(f"--config: XSamConfig has no field {name!r}")
    try:
        config = XSamConfig(**merged)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the configuration cannot be used: {error}") from error
    # Sub-configurations accept any field, so those that a fresh one does not know must be misspelt.
    for name in _PARTS:
        fresh = type(getattr(config, name))()
        strange = [field for field in overrides.get(name, {}) if not hasattr(fresh, field) and field != "model_type"]
        if strange:
            raise CheckpointError(f"--config: {name} has no field {', '.join(map(repr, strange))}")
    return config


def _read_preprocessor(folder: Path, tower: str, size: int, notices: list[str]) -> dict[str, Any]:
    """Return the arguments of the image processor for one tower."""
    arguments: dict[str, Any] = {f"{tower}_size": size}
    if not any((folder / name).is_file() for name in _PREPROCESSOR_FILES):
        return arguments
    try:
        found, _ = BaseImageProcessor.get_image_processor_dict(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the preprocessor's configuration cannot be read: {error}") from error
    sizes = found.get("size", size)
    sides = set(sizes.values() if isinstance(sizes, dict) else [sizes])
    if sides != {size}:
        raise CheckpointError(f"{folder}: the preprocessor makes images of {sizes}, the model takes {size} pixels")
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in found:
            arguments[f"{tower}_{ours}"] = found[theirs]
    if found.get("resample", _BILINEAR) != _BILINEAR:
        notices.append(f"{folder} asks for resample={found['resample']}; X-SAM was trained with bilinear and keeps it")
    return arguments
