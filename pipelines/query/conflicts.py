"""The view ``conflicts``: masks in the place of which there is one of another name, with the IoU of the two."""

from __future__ import annotations

import duckdb
import pyarrow as pa

from pipelines.masks import rle
from pipelines.types import Rle

_LEAST_IOU = 0.5
_FIELDS = ("annotation_id", "prompt_id", "category_name", "score")
# Two masks have no more pixels in common than their boxes, and at least so much of the larger one if they agree so
# well: few pairs are left whose run lengths are compared.
_CONFLICTS = """
CREATE VIEW conflicts AS
WITH near AS MATERIALIZED (
    SELECT a.image_id, a.task, {one} AS one, {other} AS other, a.segmentation AS mask, b.segmentation AS rival
    FROM annotations AS a JOIN annotations AS b
    ON a.image_id = b.image_id AND a.task = b.task AND a.category_name < b.category_name
    WHERE least(a.area, b.area) >= {least} * greatest(a.area, b.area)
    AND greatest(0, least(a.bbox_x + a.bbox_w, b.bbox_x + b.bbox_w) - greatest(a.bbox_x, b.bbox_x))
        * greatest(0, least(a.bbox_y + a.bbox_h, b.bbox_y + b.bbox_h) - greatest(a.bbox_y, b.bbox_y))
        >= {least} * greatest(a.area, b.area)
), pairs AS MATERIALIZED (
    SELECT * FROM (SELECT image_id, task, mask_iou(mask, rival) AS iou, one, other FROM near) WHERE iou >= {least}
), sides AS (
    FROM pairs UNION ALL SELECT image_id, task, iou, other, one FROM pairs
)
SELECT image_id, one.annotation_id, task, one.prompt_id, one.category_name, one.score, iou AS conflict_iou,
    other.prompt_id AS conflict_prompt, other.category_name AS conflict_name, other.score AS conflict_score,
    other.annotation_id AS conflict_annotation_id
FROM sides QUALIFY row_number() OVER (
    PARTITION BY image_id, one.annotation_id ORDER BY iou DESC, other.score DESC, other.annotation_id
) = 1
"""


def create_conflicts(connection: duckdb.DuckDBPyConnection) -> None:
    """Create the view ``conflicts`` over the view ``annotations``.

    It has a row for each mask that has the same place (IoU of at least 0.5) as one of another name and the same task:
    with the one that it agrees with best. Masks are compared when it is asked.
    """
    mask = duckdb.struct_type({"size": duckdb.list_type("INTEGER"), "counts": "VARCHAR"})
    connection.create_function("mask_iou", _ious, [mask, mask], "DOUBLE", type="arrow")
    one, other = (", ".join(f"{name}: {side}.{name}" for name in _FIELDS) for side in "ab")
    connection.execute(_CONFLICTS.format(one=f"{{{one}}}", other=f"{{{other}}}", least=_LEAST_IOU))


def _ious(ones: pa.Array, others: pa.Array) -> pa.Array:
    """Return the IoU of each pair of masks, columns of ``segmentation``."""
    pairs = zip(ones.to_pylist(), others.to_pylist(), strict=True)
    return pa.array([float(rle.iou([Rle.from_coco(a)], [Rle.from_coco(b)])[0, 0]) for a, b in pairs], pa.float64())
