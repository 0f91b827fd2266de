"""The data types of an export: the user's choice, and the images, masks and categories that are exported."""

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
"""Called with the number of masks written since the last call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The filters, tasks and splits of an export.

    Attributes:
        where: SQL condition on masks, over the columns of ``annotations`` and width, height, num_bytes and
            source_columns of the image. An image none of whose masks fits is still exported.
        images_where: SQL condition on images, over the columns of ``images``.
        image_ids: the only images that are exported; None for all.
        tasks: tasks whose masks are exported; empty for those that suit the format.
        categories: category names in the order of their numbers; empty for all that are found, sorted by name.
        splits: how images are divided into splits.
        with_empty: whether to export images without a mask, too.
        copy_images: whether to copy the image files, too (yolo).
        link_images: whether images that are files of this machine become links, where they are not copied (yolo).
        polygons: whether masks are written as polygons (coco).
        image_url: prefix from which tools load images, followed by the image_id; empty for the images' own URIs.
        drop_removed: whether to leave out what only earlier runs asked of every image.
    """

    where: str = ""
    images_where: str = ""
    image_ids: tuple[str, ...] | None = None
    tasks: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    splits: Splits = field(default_factory=Splits)
    with_empty: bool = True
    copy_images: bool = False
    link_images: bool = True
    polygons: bool = False
    image_url: str = ""
    drop_removed: bool = False


@dataclass(frozen=True, slots=True)
class ExportCategory:
    """A category: name, position from 0, whether it is a thing (known for panoptic tasks only), number of masks."""

    name: str
    position: int
    is_thing: bool
    num_masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportMask:
    """One exported row of ``annotations``; fields are its columns, and ``category`` is its category's position.

    ``file`` is the name of the data file that contains it, relative to the output.
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
            DamagedError: the mask is damaged.
        """
        try:
            return rle.decode(self.segmentation)
        except rle.RleError as error:
            raise DamagedError(
                f"{self.file}: mask {self.annotation_id} cannot be decoded ({error}); verify names what is damaged"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportImage:
    """One exported image with its exported masks, best first.

    ``number`` is its id in formats with numeric ids, ``uri`` where it was read from, ``url`` where tools load it from.
    """

    image_id: str
    number: int
    uri: str
    url: str
    width: int
    height: int
    masks: tuple[ExportMask, ...]
