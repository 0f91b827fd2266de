"""The committed rows of an output as one pyarrow dataset: what readers see, and nothing that no commit names."""

from __future__ import annotations

import pyarrow.dataset as ds

from pipelines.layout import Kind
from pipelines.planning.plan import planned_runs
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.schema import SCHEMAS


def open_table(store: Store, kind: Kind, run_id: str | None = None) -> ds.Dataset:
    """Open the committed rows of one run, or of every run, as a pyarrow dataset.

    Whole committed shards only, whatever else lies in the folder and whoever is writing at the moment.

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
