"""Draw the images of an audit: some of each band of scores of each category, and some in which none was found.

One number in [0, 1) belongs to each image, made of its id and the seed. Of each stratum the images with the smallest
numbers are drawn, so that an image serves as many strata as it can, and a larger sample of the same seed holds the
smaller one. An image's probability of being drawn is taken given the numbers of all others (rank conditioning, Cohen
and Kaplan 2007; of several strata the largest, Cohen 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import duckdb

_NUMBER = "(('0x' || sha256('{seed}:' || image_id)[:13])::UBIGINT::DOUBLE / 4503599627370496)"
# The view audit_pairs has a row for each image and category that it was asked: image_id, category_name, band, number.
_STRATA = """
CREATE TEMP TABLE audit_strata AS
SELECT category_name, band, images, least(images, wanted) AS drawn, smallest[drawn] AS last,
    coalesce(smallest[wanted + 1], 1) AS probability_inside
FROM (
    SELECT category_name, band, count(*) AS images, min(number, {most} + 1) AS smallest,
        CASE band WHEN 0 THEN {without} ELSE {per_band} END AS wanted
    FROM audit_pairs GROUP BY ALL
)
"""
_DRAWN = """
CREATE TEMP TABLE audit_images AS
WITH strata AS (FROM audit_pairs JOIN audit_strata USING (category_name, band)),
    drawn AS MATERIALIZED (SELECT DISTINCT image_id FROM strata WHERE number <= last)
SELECT image_id, max(CASE WHEN number <= last THEN probability_inside ELSE last END) AS probability,
    list({category_name: category_name, band: band} ORDER BY category_name) AS bands
FROM strata SEMI JOIN drawn USING (image_id) GROUP BY image_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """How many images are drawn for each category.

    Attributes:
        per_band: of each band of scores, those whose best mask of the category lies in it.
        without: of the images in which there is no mask of the category.
    """

    per_band: int = 20
    without: int = 100


def band_sql(score: str, edges: Sequence[float]) -> str:
    """Return an SQL expression for the band of a score: 0 for null, K from the K-th edge on, the first being 0."""
    higher = "".join(f" + ({score} >= {edge!r})::INTEGER" for edge in edges[1:])
    return f"CASE WHEN {score} IS NULL THEN 0 ELSE 1{higher} END"


def number_sql(seed: int) -> str:
    """Return an SQL expression for the number of an image in [0, 1), over its ``image_id``."""
    return _NUMBER.format(seed=seed)


def draw(database: duckdb.DuckDBPyConnection, size: SampleSize) -> None:
    """Draw a sample, as the tables audit_strata and audit_images of the database.

    Args:
        database: has the view ``audit_pairs`` with the columns image_id, category_name, band and number.
        size: how many images are drawn.
    """
    most = max(size.per_band, size.without)
    database.execute(_STRATA.format(most=most, per_band=size.per_band, without=size.without))
    database.execute(_DRAWN)
