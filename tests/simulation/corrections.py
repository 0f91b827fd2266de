"""People who correct masks in a life: each exports, edits, and imports the file until that has ended."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from flows.commands import export
from pipelines.errors import StorageError
from pipelines.importing import imports
from pipelines.importing.imports import ImportChoice
from pipelines.masks import rle
from pipelines.planning.fingerprint import fingerprint_digest
from pipelines.query import database
from pipelines.storage.store import Store
from pipelines.table.shard_commit import DataFile
from tests.simulation.network import URI

if TYPE_CHECKING:
    from tests.simulation.life import Life

CHOICE = ImportChoice(format_name="coco")
REFUSED = ("cannot be used", "holds no image", "none of its")
"""Words of what is rightly refused: every image of the file has changed since, or is none of the output any more."""
PEOPLES_NAME = "drawn"
"""A name that people give to what they draw; models are asked for it as well, later."""
_NAMES = ("bright", "light", "dark", "other", PEOPLES_NAME)
_IMAGES = """
SELECT image_id, coalesce(image_version, 1) FROM images WHERE status IN ('ok', 'empty') ORDER BY image_id
"""
_MASKS = "SELECT image_id, annotation_id, category_name, segmentation.counts FROM annotations ORDER BY ALL"
_ANSWERED = """
SELECT i.image_id, i.run_id FROM all_images AS i JOIN runs USING (run_id)
WHERE runs.imported IS NOT NULL AND len(i.corrections) > 0 ORDER BY place
"""


@dataclass
class Edited:
    """A file that a person has edited.

    Attributes:
        data: the file.
        left: by image id what the person has left in it: names and counts; of the images that were changed.
        deleted: by image id the ids of masks that were deleted.
        versions: by image id how the picture was numbered that the person has seen.
    """

    data: bytes
    left: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    deleted: dict[str, set[str]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)


def edit(life: Life, number: int) -> Edited | None:
    """Export what is there, and change masks of some images; None if there is nothing to be changed."""
    if not _has_answers(life):
        return None
    draw = random.Random(f"edits {life.seed} {number}")
    try:
        with _opened(life) as opened:
            rows = opened.sql(_IMAGES).fetchall()
            masks = opened.sql(_MASKS).fetchall()
    except StorageError:  # something is damaged just now
        return None
    edited = Edited(b"", versions=dict(rows))
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    for place, (image_id, _) in enumerate(rows):
        of_image = [(one, name, counts) for image, one, name, counts in masks if image == image_id]
        left = _edit(draw, of_image, number) if not place or draw.random() < 0.7 else of_image
        if left != of_image:
            edited.left[image_id] = {(name, counts) for _, name, counts in left}
            edited.deleted[image_id] = {one for one, _, _ in of_image} - {one for one, _, _ in left}
        ids = [one for one, _, _ in of_image]
        images.append({"id": place, "file_name": image_id, "height": 4, "width": 6, "annotation_ids": ids})
        for one, name, counts in left:
            entry = {"id": len(annotations), "image_id": place, "category_id": _NAMES.index(name)}
            segmentation = {"size": [4, 6], "counts": counts}
            annotations.append({**entry, "segmentation": segmentation, "annotation_id": one})
    if not edited.left:
        return None
    categories = [{"id": number, "name": name} for number, name in enumerate(_NAMES)]
    document = {"images": images, "annotations": annotations, "categories": categories, "info": {"life": number}}
    edited.data = json.dumps(document).encode()
    return edited


def _has_answers(life: Life) -> bool:
    """Whether any image is answered, as commits tell: opening the output takes longer."""
    commits = (one.data for path, one in life.network.objects.held.items() if "/commits/" in path)
    try:
        counts = [json.loads(data)["status_counts"] for data in commits]
        return any(one.get("ok") or one.get("empty") for one in counts)
    except ValueError:  # something is damaged just now
        return False


def _edit(draw: random.Random, masks: list[tuple[Any, ...]], number: int) -> list[tuple[Any, ...]]:
    """Delete, move and add masks; each file adds in a place of its own, or what was deleted might be drawn anew."""
    left = list(masks)
    if left and draw.random() < 0.4:
        left.pop(draw.randrange(len(left)))
    if left and draw.random() < 0.5:
        one, name, _ = left.pop(draw.randrange(len(left)))
        left.append((one, name, _column(0, 3)))
    if not left or draw.random() < 0.4:
        left.append((None, draw.choice((PEOPLES_NAME, *_NAMES[:2])), _column(2 + number, 4)))
    return left


def _column(column: int, height: int) -> str:
    mask = np.zeros((4, 6), np.bool_)
    mask[:height, column] = True
    return rle.encode(mask).counts


def is_refused(why: str) -> bool:
    """Whether an import was rightly refused: what was corrected is not there any more."""
    return any(words in why for words in REFUSED)


def run_import(number: int) -> int:
    """`xsam-label import`."""
    from tests.simulation.commands import CONSOLE

    return 0 if export.run_import(URI, str(number), CHOICE, CONSOLE) else 1


def has_run(life: Life, edited: Edited) -> bool:
    """Whether a file has been imported as a run, whole or not."""
    return any(path.endswith(f"/{_run_id(edited)}/plan.json") for path in life.network.objects.held)


def check_current(life: Life) -> None:
    """What people have left in an image is what is current, and what they have deleted is gone."""
    with _opened(life) as opened:
        current = opened.sql(_MASKS).fetchall()
        versions = dict(opened.sql(_IMAGES).fetchall())
        answered = opened.sql(_ANSWERED).fetchall()
    files = {_run_id(one): one for one in life.files.values()}
    for image_id, run_id in dict(answered).items():  # the last of each image counts
        edited = files[run_id]
        if edited.versions.get(image_id) != versions.get(image_id) or image_id not in edited.left:
            continue
        found = {(name, counts) for image, _, name, counts in current if image == image_id}
        missing = edited.left[image_id] - found
        assert not missing, f"{missing} of {image_id} is not current, though {run_id} has imported it last"
        again = {one for image, one, *_ in current if image == image_id} & edited.deleted[image_id]
        assert not again, f"{again} of {image_id} is current, though {run_id} has deleted it last"


def _run_id(edited: Edited) -> str:
    return f"import-{fingerprint_digest(imports._fingerprint(CHOICE, edited.data, None))[:12]}"


@contextmanager
def _opened(life: Life) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open the output as it is, at once."""
    task, life.world.current = life.world.current, None
    try:
        with database.open_database(life.store) as opened:
            yield opened
    finally:
        life.world.current = task


def make_readable(
    connection: duckdb.DuckDBPyConnection, store: Store, files: Iterable[DataFile]
) -> tuple[dict[str, str], list[str]]:
    """Give DuckDB copies on disk, read by the process whose turn it is: its own threads have none."""
    del connection
    folder = Path(tempfile.mkdtemp(dir=_folder[0]))
    paths = {}
    for place, file in enumerate(files):
        path = folder / f"{place}.parquet"
        path.write_bytes(store.read(file.name))
        paths[file.name] = str(path)
    return paths, [str(folder)]


_folder: list[str] = []


@contextmanager
def folder_for_copies() -> Iterator[None]:
    """Have a folder for make_readable inside this block."""
    with tempfile.TemporaryDirectory() as folder:
        _folder[:] = [folder]
        yield
