"""Writes the model card (README.md) of a model folder, for people and for the Hugging Face hub."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from huggingface_hub import ModelCardData

_TASKS = ("ovseg", "genseg", "vgdseg", "refseg", "reaseg", "intseg", "gcgseg")
_LIBRARIES = ("torch", "transformers", "safetensors", "tokenizers")
_TEMPLATE = """---
{front_matter}
# license: fill in, see below
---

# X-SAM

Segments anything in an image that is named or pointed at: category names, phrases, sentences, points, boxes,
scribbles and masks go in, instance masks come out. {origin}
[X-SAM](https://arxiv.org/abs/2508.04655) ([code](https://github.com/wanghao9610/X-SAM)).

Tasks: {tasks}.

## Use

```python
import torch
from xsam_model import XSamForSegmentation, XSamProcessor

folder = "."  # this one
model = XSamForSegmentation.from_pretrained(folder, dtype=torch.bfloat16, device_map="auto").eval()
processor = XSamProcessor.from_pretrained(folder)

inputs = processor("photo.jpg", task="ovseg", conditions=[["person", "dog"]])
with torch.no_grad():
    outputs = model(**inputs.to(model.device))
(found,) = processor.post_process_instance_segmentation(outputs, target_sizes=inputs["original_sizes"], threshold=0.5)
print(found.labels, found.scores, found.masks.shape)
```

`AutoModel`, `AutoConfig` and `AutoProcessor` load it too, once `xsam_model` is imported; without that package with
`trust_remote_code=True`, by the code in this folder.

## Size

{weights}Images are seen at {vision_size} and {mask_size} pixels; {max_text_length} text tokens fit beside an image.

## License

To be filled in before publishing: the license of these weights, and those of the base models, which they contain.
"""
_ORIGIN = """
## Base models

| part | folder |
|---|---|
{bases}

## Provenance

| | |
|---|---|
| checkpoint | `{checkpoint}` |
| SHA-256 | `{sha256}` |
| made with | {versions} |

```
{command}
```
"""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The facts about one model that its card states.

    Attributes:
        vision_size, mask_size: sides of the towers' inputs in pixels.
        max_text_length: most text tokens in a conversation.
        conversion: where its weights come from, if they were converted.
    """

    vision_size: int
    mask_size: int
    max_text_length: int
    conversion: ConversionFacts | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionFacts:
    """The facts about a conversion.

    Attributes:
        num_parameters, num_bytes: totals of all weights.
        dtype: dtype of most weights.
        bases: (part, name) of every base model; a name "owner/model" is a hub repository.
        checkpoint, sha256: name and hash of the converted file.
        command: the command line of the conversion.
    """

    num_parameters: int
    num_bytes: int
    dtype: str
    bases: Sequence[tuple[str, str]]
    checkpoint: str
    sha256: str
    command: str


def model_card(facts: ModelFacts) -> str:
    """Return the text of README.md, YAML front matter included."""
    converted = facts.conversion
    hub_names = [name for _, name in converted.bases if "/" in name] if converted else []
    front_matter = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=hub_names or None,
        tags=["x-sam", "segmentation", "open-vocabulary", "visual-prompting"],
    )
    card = _TEMPLATE.format(
        front_matter=front_matter.to_yaml(),
        origin="Converted from the weights of" if converted else "Its architecture is that of",
        tasks=", ".join(f"`{task}`" for task in _TASKS),
        weights=_weights(converted),
        vision_size=facts.vision_size,
        mask_size=facts.mask_size,
        max_text_length=facts.max_text_length,
    )
    if converted is None:
        return card
    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    return card + _ORIGIN.format(
        bases="\n".join(f"| {part} | {name} |" for part, name in converted.bases),
        checkpoint=converted.checkpoint,
        sha256=converted.sha256,
        command=converted.command,
        versions=", ".join([f"Python {platform.python_version()}", *versions]),
    )


def _weights(converted: ConversionFacts | None) -> str:
    if converted is None:
        return ""
    return f"{converted.num_parameters:,} parameters in {converted.dtype}, {converted.num_bytes:,} bytes. "
