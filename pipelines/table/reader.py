"""Open the committed rows of an output as a pyarrow dataset; files that no commit names are not part of it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipelines.layout import Kind
from pipelines.planning.plan import planned_runs, require_plan
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.image_lookup import commits_of_images
from pipelines.table.schema import SCHEMAS

if TYPE_CHECKING:  # imports pandas wherever that is installed: a fifth of the time to a command's first line
    import pyarrow.dataset as ds


def open_table(
    store: Store, kind: Kind, run_id: str | None = None, *, image_ids: Collection[str] | None = None
) -> ds.Dataset:
    """Open the committed rows of one run, or of every run, as a pyarrow dataset.

    Only whole committed shards, no matter what else lies in the folder or who is writing at the moment.

    Args:
        store: the output.
        kind: "annotations" or "images".
        run_id: one run; by default every planned run. Where several have labeled an image, query.open_database shows
            which of their rows are current.
        image_ids: only the rows of these images: of each run just the files of their shards are opened, which the plan
            tells. By default those of all.

    Raises:
        DamagedError: a commit, or with ``image_ids`` a file of the plan, is damaged.
    """
    import pyarrow.dataset as ds

    names = []
    for one in planned_runs(store) if run_id is None else [run_id]:
        if image_ids is None:
            commits = list(read_commits(store, one))
        else:
            commits = commits_of_images(store, require_plan(store, one, oldest=1), image_ids)
        names += [(c.annotations if kind == "annotations" else c.images).name for c in commits]
    if not names:
        return ds.dataset(SCHEMAS[kind].empty_table())
    paths = [store.path(name) for name in names]
    rows = ds.dataset(paths, schema=SCHEMAS[kind], filesystem=store.fs, format="parquet")
    return rows if image_ids is None else rows.filter(pc.field("image_id").isin(list(image_ids)))
