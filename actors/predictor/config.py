"""Settings of the model, and the folder it is in. Imports no torch, which keeps the command line quick to start."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from pipelines.settings import Settings

TINY_MODEL = "xsam-tiny"
# The models that come with the package, by which their names stand for a folder.
INCLUDED_MODELS = (TINY_MODEL, "xsam-photos")
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "bfloat16", "float16", "float32"]
RegionSampling = Literal["seeded", "all"]
CategoryText = Literal["clean", "reference"]


class PredictorConfig(Settings):
    """Settings of the predictor: the model that a replica loads, and the masks that it keeps."""

    path: str = TINY_MODEL
    """Folder with config, weights, tokenizer and processor, as ``save_pretrained`` writes it, or a small model that
    comes with the package: "xsam-tiny" knows drawings of everyday things, "xsam-photos" cuts out what is marked in
    photographs.
    """
    device: Device = "auto"
    """"auto" takes the GPU that the replica was given, else the CPU."""
    dtype: Dtype = "auto"
    """"auto" is bfloat16 on a GPU and float32 on the CPU."""
    attn_implementation: str | None = None
    """Transformers' name, e.g. "sdpa", "eager", "flash_attention_2"; None for its default."""
    min_score: float = 0.05
    """Masks below are not kept, in [0, 1). A low floor is right: a threshold is a WHERE clause later."""
    max_masks_per_image: int = 100
    """Most masks of each image and task; those with the best scores are kept."""
    region_sampling: RegionSampling = "seeded"
    """How a visual prompt's mask is read: "seeded" draws 256 of its pixels, always the same ones; "all" takes every
    pixel.
    """
    category_text: CategoryText = "clean"
    """How categories are written in questions: "clean" drops outer white space and the suffixes of COCO's stuff;
    "reference" repeats what the authors' evaluation asks, outer white space included.
    """
    max_new_tokens: int = 512
    """Most tokens of an answer in words: of captions, explanations and chat."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.path:
            raise ValueError("model path is empty; give the folder of a model")
        if not 0 <= self.min_score < 1:
            raise ValueError(f"min_score is {self.min_score}; allowed: 0 up to, not including, 1")
        # The rank column is an int16 and counts over all tasks of an image, of which up to six give masks in one run.
        if not 1 <= self.max_masks_per_image <= 5_000:
            raise ValueError(f"max_masks_per_image is {self.max_masks_per_image}; allowed: 1 to 5000")
        if not 1 <= self.max_new_tokens <= 100_000:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; allowed: 1 to 100000")
        return self


def model_folder(path: str) -> Path:
    """Return a model's folder on this machine as an absolute path, without loading anything."""
    if path not in INCLUDED_MODELS:
        return Path(path).expanduser().absolute()
    # Finds the package without importing it, which would load torch.
    package = find_spec("xsam_model")
    places = package.submodule_search_locations if package else None
    assert places, "xsam_model is part of this distribution"
    return Path(places[0]) / "weights" / path
