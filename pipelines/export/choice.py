"""The nouns of an export: what is asked for, and the images, masks and categories that it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import DamagedError
from pipelines.export.splits import Splits
from pipelines.masks import rle
from pipelines.types import Rle

Progress = Callable[[int], None]
"""Told how many masks have been written since it was told last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What to export.

    Attributes:
        where: SQL condition on a mask: columns of ``annotations``, and width, height, num_bytes and source_columns of
            its image. An image without such a mask is still exported.
        images_where: SQL condition on an image: columns of ``images``.
        tasks: whose masks; empty for what suits the format.
        categories: names in the order of their numbers; empty for all that are found, in order of name.
        splits: of the images.
        with_empty: also images without a mask.
        copy_images: copy the images too (yolo).
        image_url: what the images' ids are appended to where tools are to load them; empty for their own URIs.
    """

    where: str = ""
    images_where: str = ""
    tasks: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    splits: Splits = field(default_factory=Splits)
    with_empty: bool = True
    copy_images: bool = False
    image_url: str = ""


@dataclass(frozen=True, slots=True)
class ExportCategory:
    """A category: its name, its position from 0, whether it is a thing (panoptic tasks alone say so), and its masks."""

    name: str
    position: int
    is_thing: bool
    num_masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportMask:
    """One chosen row of ``annotations``: fields as its columns, ``category`` the position of its category.

    ``file`` is the name of the data file that holds it, relative to the output.
    """

    annotation_id: str
    category: int
    category_name: str
    task: str
    score: float
    is_thing: bool | None
    bbox_xywh: tuple[float, float, float, float]
    segmentation: Rle
    run_id: str
    file: str

    def pixels(self) -> NDArray[np.bool_]:
        """Decode the mask: bool (H, W), Fortran-contiguous.

        Raises:
            DamagedError: it is damaged.
        """
        try:
            return rle.decode(self.segmentation)
        except rle.RleError as error:
            raise DamagedError(
                f"{self.file}: mask {self.annotation_id} cannot be decoded ({error}); verify names what is damaged"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportImage:
    """One chosen image with its chosen masks, best first.

    ``number`` stands for it where ids are numbers, ``uri`` is where it was read, ``url`` where tools are to load it.
    """

    image_id: str
    number: int
    uri: str
    url: str
    width: int
    height: int
    masks: tuple[ExportMask, ...]
