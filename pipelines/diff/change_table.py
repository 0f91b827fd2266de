"""The table of changes: a Parquet file with a row for each pair of masks, or mask that has no other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.diff.changes import MaskChange
from pipelines.diff.sides import SideImage, SideMask
from pipelines.table.schema import ANNOTATIONS

_ROWS_PER_GROUP = 16_384
_OF_A_MASK = {
    "annotation_id": pa.string(),
    "prompt_id": pa.string(),
    "category_name": pa.string(),
    "score": pa.float32(),
    "source": pa.string(),
    "run_id": pa.string(),
    "segmentation": ANNOTATIONS.field("segmentation").type,
}
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("change", pa.string(), nullable=False),
        pa.field("iou", pa.float32()),
        *(pa.field(f"{name}_before", kind) for name, kind in _OF_A_MASK.items()),
        *(pa.field(f"{name}_after", kind) for name, kind in _OF_A_MASK.items()),
    ]
)
"""Columns of the file: those of a mask once for each side, null on that where it is not."""


class ChangeTable:
    """Writes rows as they come, some thousands in memory at a time; a context manager.

    Args:
        path: of a new file.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self.num_rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, image: SideImage, change: MaskChange) -> None:
        """Add a row."""
        self._rows.append(
            {
                "image_id": image.image_id,
                "image_uri": image.uri,
                "prompt_id": change.prompt_id,
                "task": change.masks[0].task,
                "change": change.difference.value,
                "iou": change.iou,
                **_of_mask(change.before, "before"),
                **_of_mask(change.after, "after"),
            }
        )
        self.num_rows += 1
        if len(self._rows) >= _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()


def _of_mask(mask: SideMask | None, side: str) -> dict[str, Any]:
    if mask is None:
        return {}
    values = {name: getattr(mask, name) for name in _OF_A_MASK if name != "segmentation"}
    return {f"{name}_{side}": value for name, value in (values | {"segmentation": mask.segmentation.to_coco()}).items()}
