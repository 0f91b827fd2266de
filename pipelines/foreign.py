"""What lies in an output's folders and is none of its own: left alone by every command, and told of by verify."""

from __future__ import annotations

import re

from pipelines.storage import PROBE_PREFIX, Store
from pipelines.table import KINDS, split_commit_name, split_data_name

_OF_RUN = re.compile(r"_runs/[^/]+/(plan\.json|plan-[^/]+\.parquet|summary\.json|report\.html)")


def foreign_names(store: Store) -> list[str]:
    """List the files of an output's folders that have no name of ours (.DS_Store, _SUCCESS, part-0.parquet), sorted."""
    names = [name for folder in (*KINDS, "_runs") for name in store.find(folder)]
    return sorted(name for name in names if not _is_ours(name))


def _is_ours(name: str) -> bool:
    if name.startswith(PROBE_PREFIX) or _OF_RUN.fullmatch(name):
        return True
    return split_data_name(name) is not None or split_commit_name(name) is not None
