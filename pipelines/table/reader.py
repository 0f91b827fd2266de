"""Open the committed rows of an output as a pyarrow dataset; files that no commit names are not part of it."""

from __future__ import annotations

import pyarrow.dataset as ds

from pipelines.layout import Kind
from pipelines.planning.plan import planned_runs
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.schema import SCHEMAS


def open_table(store: Store, kind: Kind, run_id: str | None = None) -> ds.Dataset:
    """Open the committed rows of one run, or of every run, as a pyarrow dataset.

    Only whole committed shards, no matter what else lies in the folder or who is writing at the moment.

    Args:
        store: the output.
        kind: "annotations" or "images".
        run_id: one run; by default every planned run. Where several have labelled an image, query.open_database shows
            which of their rows are current.
    """
    names = []
    for one in planned_runs(store) if run_id is None else [run_id]:
        names += [(c.annotations if kind == "annotations" else c.images).name for c in read_commits(store, one)]
    if not names:
        return ds.dataset(SCHEMAS[kind].empty_table())
    paths = [store.path(name) for name in names]
    return ds.dataset(paths, schema=SCHEMAS[kind], filesystem=store.fs, format="parquet")
