"""Cross-check annotations against images, by a few sums for each shard instead of file hashes.

A flipped bit in an id separates an image from its masks, and a join of the two tables would silently drop them.
"""

from __future__ import annotations

import duckdb

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, data_name
from pipelines.query.fence import sql_literal
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit

_MAX_TOLD = 3
# The hash of each image's id is added once for each of its masks, on both sides: the sums agree if ids and counts do.
# HUGEINT, since 64-bit hashes times millions of masks overflow a BIGINT.
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
    """Check that every mask belongs to an image with a row, and that every image has as many masks as its row says.

    Args:
        database: the output's database, as query.open_database returns it.
        store: the output.
        run_id: one run; by default all of them.

    Raises:
        DamagedError: they do not; the message names the pairs of files of which one is damaged, and says how many masks
            have no image.
        duckdb.Error: the rows cannot be read.
    """
    of_run = "true" if run_id is None else f"run_id = {sql_literal(run_id)}"
    different = database.execute(_DIFFERENT.format(of_run=of_run)).fetchall()
    if not different:
        return
    (unknown,) = database.execute(_UNKNOWN.format(of_run=of_run)).fetchall()[0]
    pairs = [" and ".join(_file_names(store, *shard)) for shard in different[:_MAX_TOLD]]
    more = f"; and {counted(len(different) - _MAX_TOLD, 'more shard')}" if len(different) > _MAX_TOLD else ""
    of_none = f": {counted(unknown, 'mask is of an image', 'masks are of images')} without a row" if unknown else ""
    raise DamagedError(
        f"{store.uri}: the rows of {'; '.join(pairs)}{more} do not agree{of_none}; verify names what is damaged"
    )


def _file_names(store: Store, run_id: str, shard_id: str, attempt: str) -> list[str]:
    """Return the names of a shard's files as its commit gives them: a row does not say which repair wrote it."""
    commit = find_commit(store, run_id, shard_id)
    if commit is None or commit.attempt != attempt:
        return [data_name(kind, run_id, shard_id, attempt) for kind in KINDS]
    return [file.name for file in commit.files()]
