"""Do the rows of masks and those of images belong together? A few sums by shard say so, without a hash of any file.

One flipped bit in an id parts an image from its masks: whoever joins the two tables would leave those out in silence.
"""

from __future__ import annotations

import duckdb

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, data_name
from pipelines.query.fence import sql_literal
from pipelines.storage.store import Store

_MAX_TOLD = 3
# Each image adds the hash of its id as often as it has masks: the sums are equal if the ids and the numbers are.
_DIFFERENT = """
WITH said AS (
    SELECT run_id, shard_id, attempt, sum(hash(image_id)::HUGEINT * num_annotations) AS masks
    FROM all_images WHERE {of_run} GROUP BY ALL
), found AS (
    SELECT run_id, shard_id, attempt, sum(hash(image_id)::HUGEINT) AS masks
    FROM all_annotations WHERE {of_run} GROUP BY ALL
)
SELECT run_id, shard_id, attempt FROM said FULL JOIN found USING (run_id, shard_id, attempt)
WHERE coalesce(said.masks, 0) <> coalesce(found.masks, 0) ORDER BY ALL
"""
_UNKNOWN = """
SELECT count(*) FROM (FROM all_annotations WHERE {of_run}) ANTI JOIN all_images USING (run_id, image_id)
"""


def check_agreement(database: duckdb.DuckDBPyConnection, store: Store, run_id: str | None = None) -> None:
    """Check that every mask is of an image that has a row, and every image has as many masks as its row says.

    Args:
        database: of the output, as query.open_database returns it.
        store: the output.
        run_id: one run; by default all of them.

    Raises:
        DamagedError: naming the files of which one is damaged, and how many masks have no image.
        duckdb.Error: the rows cannot be read.
    """
    of_run = "true" if run_id is None else f"run_id = {sql_literal(run_id)}"
    different = database.execute(_DIFFERENT.format(of_run=of_run)).fetchall()
    if not different:
        return
    (unknown,) = database.execute(_UNKNOWN.format(of_run=of_run)).fetchall()[0]
    pairs = [" and ".join(data_name(kind, *shard) for kind in KINDS) for shard in different]
    more = f"; and {len(pairs) - _MAX_TOLD:,} more shards" if len(pairs) > _MAX_TOLD else ""
    counted = f": {unknown:,} masks are of images without a row" if unknown else ""
    raise DamagedError(
        f"{store.uri}: the rows of {'; '.join(pairs[:_MAX_TOLD])}{more} do not agree{counted}; verify names what is "
        "damaged"
    )
