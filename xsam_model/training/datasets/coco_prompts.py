"""Visual prompts on COCO instances, for vgdseg and intseg: read from the file, or drawn from the masks of objects.

Three file formats are read. Their field names are those of the public readers (wanghao9610/X-SAM,
`xsam/xsam/dataset/vgdseg_dataset.py` and `intseg_dataset.py`):

* COCO instances: an object with `images`, `annotations`, `categories`; annotations may have prompts as below.
* PSALM's COCO-Interactive (`coco_interactive_train_psalm.json`): a list of `{"image", "image_info", "anns"}`, whose
  annotations have `point_visual_prompt_mask`, `scribble_...`, `box_...` and `mask_visual_prompt_mask`. Points and
  scribbles are thin there: both readers dilate them by discs, of radius 10 and 5.
* X-SAM's COCO-VGD (`vgdseg_annotations`): a list of `{"image_file", "image_id", "image_size", "annotations"}`, whose
  annotations have `"visual_prompts": {"point_visual_prompt": ..., "scribble_visual_prompt": ..., ...}` at full size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import VISUAL_TASKS
from xsam_model.prompts.visual import POINT_RADIUS, SCRIBBLE_RADIUS
from xsam_model.training.datasets.coco_file import (
    CategoryList,
    CocoImage,
    annotation_id,
    check_lists,
    group_by_image,
    read_categories,
    read_coco,
    read_image,
    read_outline,
)
from xsam_model.training.datasets.images import ImageFolder
from xsam_model.training.datasets.records import (
    NOTHING_ANNOTATED,
    Record,
    RecordError,
    RecordSource,
    Skipped,
    as_list,
    read_json,
)
from xsam_model.training.datasets.segmentations import (
    Segmentation,
    ignored_pixels,
    rasterize,
    read_segmentation,
)
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.textures import opencv
from xsam_model.training.scenes.asked.prompts import PROMPT_KINDS, draw_prompt

_THIN = {"point": POINT_RADIUS, "scribble": SCRIBBLE_RADIUS}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BroughtPrompt:
    """A visual prompt read from a file.

    Attributes:
        region: its pixels.
        radius: radius of the disc by which it is dilated; 0 if it is drawn at full size.
    """

    region: Segmentation
    radius: int = 0

    def mask(self, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the prompt as a mask, bool (H, W)."""
        mask = self.region.mask(size_hw)
        if not self.radius:
            return mask
        rows, columns = np.mgrid[-self.radius : self.radius + 1, -self.radius : self.radius + 1]
        disc = (rows**2 + columns**2 <= self.radius**2).astype(np.uint8)
        return np.asarray(opencv().dilate(mask.astype(np.uint8), disc), dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptedObject:
    """An object: its mask, its category, and its prompts from the file by kind."""

    segmentation: Segmentation
    category: str
    prompts: Mapping[str, BroughtPrompt]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptsRecord(Record):
    """An image with objects to prompt, and regions to ignore."""

    objects: tuple[PromptedObject, ...]
    ignored: tuple[Segmentation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPrompts:
    """Turns a record of prompted objects into a training sample with visual prompts on some of them.

    Attributes:
        source: name of the data set.
        task: "vgdseg" or "intseg".
        kinds: kinds of prompts, equally likely.
        max_prompts: most prompts in a sample.
    """

    task: str = "vgdseg"
    kinds: tuple[str, ...] = PROMPT_KINDS
    max_prompts: int = 5

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: if the task or a kind is unknown, or a number is out of range.
        """
        if self.task not in VISUAL_TASKS:
            raise ValueError(f"task must be one of {', '.join(VISUAL_TASKS)}, got {self.task!r}")
        if not self.kinds or set(self.kinds) - set(PROMPT_KINDS):
            raise ValueError(f"kinds must be some of {', '.join(PROMPT_KINDS)}, got {self.kinds}")
        if self.max_prompts < 1:
            raise ValueError(f"max_prompts must be 1 or more, got {self.max_prompts}")

    def __call__(self, record: PromptsRecord, image: NDArray[np.uint8], random: np.random.Generator) -> TrainingSample:
        """Return the sample.

        For vgdseg it has one prompt for each category, which stands for all objects of it; for intseg one for each
        object.

        Raises:
            RecordError: if no object has a pixel.
        """
        size = image.shape[:2]
        masks = rasterize([one.segmentation for one in record.objects], size)
        # Permuted, so that max_prompts cuts at random, and a category is prompted by any of its objects.
        seen = [int(place) for place in random.permutation(len(masks)) if masks[place].any()]
        if not seen:
            raise RecordError(NOTHING_ANNOTATED, "no object has a pixel")
        asked: dict[object, int] = {}
        for place in seen:
            asked.setdefault(record.objects[place].category if self.task == "vgdseg" else place, place)
        chosen = list(asked.items())[: self.max_prompts]
        labels = {key: label for label, (key, _) in enumerate(chosen)}
        keys = [one.category if self.task == "vgdseg" else place for place, one in enumerate(record.objects)]
        true = [place for place, key in enumerate(keys) if key in labels]
        return TrainingSample(
            image=image,
            task=self.task,
            conditions=tuple(record.objects[place].category for _, place in chosen),
            visual_prompts=tuple(self._prompt(record.objects[place], masks[place], random) for _, place in chosen),
            masks=masks[true],
            labels=np.array([labels[keys[place]] for place in true], dtype=np.int64),
            ignore=ignored_pixels(record.ignored, masks),
        )

    def _prompt(self, thing: PromptedObject, mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
        kind = self.kinds[int(random.integers(len(self.kinds)))]
        if kind in thing.prompts:
            prompt = thing.prompts[kind].mask(mask.shape)
            # One that is empty at this size is replaced by a drawn one, like one that is missing.
            if prompt.any():
                return prompt
        return draw_prompt(kind, mask, random)


def visual_prompts(
    annotations: str,
    images: str,
    *,
    task: str = "vgdseg",
    kinds: Sequence[str] = PROMPT_KINDS,
    max_prompts: int = 5,
    categories: str | None = None,
    name: str | None = None,
) -> RecordSource[PromptsRecord]:
    """Open objects that are prompted with points, scribbles, boxes and masks.

    Args:
        annotations: JSON file in one of the three formats above. Prompts in it are used as they are; if an object has
            none of the chosen kind, the prompt is drawn from its mask.
        images: folder of its images.
        task: "vgdseg" or "intseg".
        kinds: kinds of prompts, some of `PROMPT_KINDS`.
        max_prompts: most prompts in a sample.
        categories: COCO file with category names, for the two formats that have only category ids.
        name: name of the source; "coco-<task>" by default.

    Returns:
        A source whose samples have bool (H, W) prompts for some categories and the masks of all their objects (vgdseg),
        or prompts for some objects and their masks (intseg). Pixels of crowds are ignored.

    Raises:
        ValueError: if a setting is unknown, a file or folder is missing or in another format, or nothing is usable.
    """
    name = name or f"coco-{task}"
    ask = AskPrompts(task=task, kinds=tuple(kinds), max_prompts=max_prompts)
    folder, skipped = ImageFolder(images), Skipped()
    known, found = _read_file(annotations, categories, folder, skipped)
    records = []
    for image_id, image, entries in found:
        record = _read_objects(image_id, image, entries, known, skipped)
        if record.objects:
            records.append(record)
        else:
            skipped.add(NOTHING_ANNOTATED, image_id)
    return RecordSource(name, annotations, records, skipped, open_image=folder.open, make=ask)


def _read_file(
    path: str, names: str | None, folder: ImageFolder, skipped: Skipped
) -> tuple[CategoryList | None, list[tuple[Any, CocoImage, list[Any]]]]:
    """Return the categories (None if only ids are known), and id, image and annotations of each image."""
    known = read_categories(read_coco(names, "categories")["categories"], names) if names else None
    document = read_json(path, "objects with visual prompts")
    if not isinstance(document, dict):
        return known, _listed_images(as_list(document, path, "COCO-VGD or COCO-Interactive"), folder, skipped)
    lists = check_lists(document, path, "images", "annotations", "categories")
    return known or read_categories(lists["categories"], path), group_by_image(lists, folder, skipped)


def _listed_images(
    document: list[Any], folder: ImageFolder, skipped: Skipped
) -> list[tuple[Any, CocoImage, list[Any]]]:
    """Return id, image and annotations of each image, for the two formats that are lists of images."""
    found = []
    for number, entry in enumerate(document):
        with skipped.unless_usable(f"record {number}"):
            if "image_info" in entry and "anns" in entry:
                info = {**entry["image_info"], "file_name": entry["image"]}
                found.append((info["id"], read_image(info, folder), list(entry["anns"])))
            else:
                height, width = entry["image_size"]
                info = {"file_name": entry["image_file"], "height": height, "width": width}
                found.append((entry["image_id"], read_image(info, folder), list(entry["annotations"])))
    return found


def _read_objects(
    image_id: Any, image: CocoImage, entries: list[Any], known: CategoryList | None, skipped: Skipped
) -> PromptsRecord:
    objects: list[PromptedObject] = []
    ignored: list[Segmentation] = []
    for number, entry in enumerate(entries):
        with skipped.unless_usable(annotation_id(entry, number)):
            category_id = entry["category_id"]
            category = known.names[known.place(category_id)] if known else f"category {category_id}"
            prompts = _read_prompts(entry, image.size_hw)
            if outline := read_outline(entry, image.size_hw, ignored):
                objects.append(PromptedObject(segmentation=outline, category=category, prompts=prompts))
    return PromptsRecord(
        record_id=str(image_id),
        image=image.file_name,
        size_hw=image.size_hw,
        objects=tuple(objects),
        ignored=tuple(ignored),
    )


def _read_prompts(entry: Mapping[str, Any], size_hw: tuple[int, int]) -> dict[str, BroughtPrompt]:
    """Return the prompts of an annotation, by kind."""
    found = {}
    drawn = entry.get("visual_prompts") or {}
    for kind in PROMPT_KINDS:
        if value := entry.get(f"{kind}_visual_prompt_mask"):
            region = read_segmentation(value, size_hw)
            found[kind] = BroughtPrompt(region=region, radius=_THIN.get(kind, 0))
        elif value := drawn.get(f"{kind}_visual_prompt"):
            found[kind] = BroughtPrompt(region=read_segmentation(value, size_hw))
    return found
