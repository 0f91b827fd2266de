"""What earlier runs have planned for each of many images, in columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# Runs that have planned one version of an image: more are looked at image by image. Their places fit into one number.
MAX_RUNS = 4


@dataclass(frozen=True, slots=True)
class PlannedGroups:
    """The rows of each image, and what of them counts: those of its newest version.

    Attributes:
        rows: sorted by image id and then by the place of their run.
        ids: of the images, each once.
        starts, counts: where the rows of an image begin, and how many they are.
        version: the newest of each image.
        last: its row by the last run that planned this version.
        asked_by: a number that tells which runs planned this version, see ``runs_of``.
        is_odd: whether its rows have to be looked at one by one: it has prompts of its own, or was asked only some of a
            run's, or planned by too many runs.
    """

    rows: pa.Table
    ids: pa.StringArray
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    version: NDArray[np.int32]
    last: NDArray[np.int64]
    asked_by: NDArray[np.int64]
    is_odd: NDArray[np.bool_]


def group_rows(rows: pa.Table, num_runs: int) -> PlannedGroups:
    """Group planned rows by image.

    Args:
        rows: with the columns of PLACED, in any order.
        num_runs: of all runs; their places are below it.
    """
    ids = rows["image_id"].combine_chunks()
    if len(ids) > 1 and not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
        order = [("image_id", "ascending"), ("place", "ascending")]
        rows = rows.take(pc.sort_indices(rows.select(["image_id", "place"]), order))
        ids = rows["image_id"].combine_chunks()
    if not len(ids):
        none = np.zeros(0, np.int64)
        return PlannedGroups(rows, ids, none, none, none.astype(np.int32), none, none, none.astype(np.bool_))
    is_first = np.ones(len(ids), np.bool_)
    is_first[1:] = np.asarray(pc.not_equal(ids[1:], ids[:-1]))
    starts = np.flatnonzero(is_first)
    counts = np.diff(starts, append=len(ids))
    place, versions = np.asarray(rows["place"], np.int64), np.asarray(pc.fill_null(rows["version"], 1), np.int32)
    version = np.maximum.reduceat(versions, starts)
    # Answers about an earlier version of the image are history: they say nothing about what it shows now.
    is_current = versions == np.repeat(version, counts)
    number = np.arange(len(ids))
    within = number - np.repeat(starts, counts)
    is_told = is_current & (within < MAX_RUNS)
    digits = np.where(is_told, (place + 1) * (num_runs + 1) ** np.minimum(within, MAX_RUNS), 0)
    is_partly = np.asarray(rows["common"].is_valid(), np.bool_) | _has_any(rows["prompts"])
    return PlannedGroups(
        rows=rows,
        ids=ids.take(pa.array(starts)) if len(starts) < len(ids) else ids,
        starts=starts,
        counts=counts,
        version=version,
        last=np.maximum.reduceat(np.where(is_current, number, -1), starts),
        asked_by=np.add.reduceat(digits, starts),
        is_odd=np.logical_or.reduceat(is_current & is_partly, starts) | (counts > MAX_RUNS),
    )


def runs_of(asked_by: int, num_runs: int) -> list[int]:
    """Return the places of the runs that a number of ``PlannedGroups.asked_by`` tells."""
    places = list[int]()
    while asked_by:
        asked_by, place = divmod(asked_by, num_runs + 1)
        places += [place - 1] if place else []
    return places


def has_own_prompts(images: pa.RecordBatch | pa.Table) -> NDArray[np.bool_]:
    """Return which images have prompts of their own."""
    if "prompts" not in images.schema.names:
        return np.zeros(images.num_rows, np.bool_)
    return _has_any(images["prompts"])


def _has_any(lists: Any) -> NDArray[np.bool_]:
    return np.asarray(pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0), np.bool_)
