"""What is fetched to make a model folder. Imports no torch, which keeps the command line quick to start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT, CHECKPOINT_FILE = "hao9610/X-SAM", "s3_mixed_finetune/pytorch_model.bin"
TEXT_MODEL = "microsoft/Phi-3-mini-4k-instruct"
VISION_MODEL = "google/siglip2-so400m-patch14-384"
MASK_ENCODER = "facebook/sam-vit-large"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedModel:
    """Where a model comes from, and where to.

    Attributes:
        output: folder to write; must be missing or empty.
        checkpoint: where the weights are: a repository of the Hub as "owner/name" or "owner/name@revision", a folder,
            or a file of weights.
        checkpoint_file: the file of weights in that repository or folder.
        text_model, vision_model, mask_encoder: the base models, repositories or folders.
        config: JSON file with fields of ``XSamConfig``, or None.
        dtype: type of the weights to write; "auto" keeps that of the checkpoint.
        picture: the picture that is labeled with the new model; None for none.
        categories: what is asked of it.
    """

    output: Path
    checkpoint: str = CHECKPOINT
    checkpoint_file: str = CHECKPOINT_FILE
    text_model: str = TEXT_MODEL
    vision_model: str = VISION_MODEL
    mask_encoder: str = MASK_ENCODER
    config: Path | None = None
    dtype: str = "auto"
    picture: Path | None = None
    categories: tuple[str, ...] = ()
