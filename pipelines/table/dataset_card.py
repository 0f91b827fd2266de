"""The card at an output's root that tells Hugging Face ``datasets``, and people, what lies below it."""

from __future__ import annotations

from pipelines.errors import StorageError
from pipelines.layout import CARD_NAME
from pipelines.storage.store import Store

_CARD = b"""---
configs:
- config_name: annotations
  default: true
  data_files: "annotations/*/*.parquet"
- config_name: images
  data_files: "images/*/*.parquet"
---
# Labels written by xsam-label

`annotations` has one row for each mask: image, prompt, category, score, box, COCO run lengths. `images` has one row for
each planned image: `status` says whether anything was found, and why not if it could not be labeled.

    from datasets import load_dataset
    from pycocotools import mask

    rows = load_dataset("THIS FOLDER", "annotations", split="train")
    pixels = mask.decode(rows[0]["segmentation"])  # uint8 (height, width)

These are the rows of all runs. If several runs share images, `xsam-label query` and `xsam-label export` know which rows
are current. While a run goes on, files may be there that are not committed yet.
"""


def leave_card(store: Store) -> list[str]:
    """Write the card, unless there is a file of its name, and return what went wrong: nothing depends on it."""
    try:
        if not store.exists(CARD_NAME):
            store.create(CARD_NAME, _CARD)
    except StorageError as error:
        return [f"{CARD_NAME} could not be written, without which datasets finds no configurations: {error}"]
    return []
