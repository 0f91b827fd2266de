"""Rows that can be read and say what cannot be: no command shows them as they are, or leaves them out in silence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actors.training.table_source import table
from pipelines.layout import Kind, commit_name
from pipelines.storage.store import Store
from pipelines.table.commits import parquet_bytes, read_commit
from pipelines.types import MaskPrediction, Rle
from tests.support.commands import command
from tests.support.labeled import RUN, box, mask, named, write_output

SHARD = "shard-00001"
FORMATS = {"coco": ".json", "cvat": ".xml", "label-studio": ".json", "yolo": "", "panoptic": ""}


def write_masks(folder: Path, broken: Callable[[MaskPrediction], MaskPrediction] | None = None) -> Store:
    """Label four images in two shards, all pixels of each with two masks; those of the last image may be broken."""
    prompts = [*named("ovseg", "bright"), *named("genseg_panoptic", "bright")]
    found = {f"{number:04d}.png": [mask(prompt, box(0, 0, 5, 5)) for prompt in prompts] for number in range(4)}
    if broken is not None:
        found["0003.png"] = [broken(one) for one in found["0003.png"]]
    store, _ = write_output(folder / "labels", found, common=prompts)
    truth = {
        "images": [{"id": n, "file_name": f"{n:04d}.png", "width": 10, "height": 10} for n in range(4)],
        "annotations": [{"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0,
                         "segmentation": [[0, 0, 5, 0, 5, 5, 0, 5]]}],
        "categories": [{"id": 1, "name": "bright"}],
    }  # fmt: skip
    (folder / "truth.json").write_text(json.dumps(truth))
    return store


def rewrite(store: Store, kind: Kind, change: Callable[[pa.Table], pa.Table]) -> str:
    """Give a shard's file other rows, and its commit their size and hash; return the file's name."""
    commit = read_commit(store, RUN, SHARD)
    file = commit.annotations if kind == "annotations" else commit.images
    rows = change(pq.read_table(store.path(file.name)))
    data = parquet_bytes(rows, kind, {})
    store.write(file.name, data)
    other = dataclasses.replace(file, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=rows.num_rows)
    store.write(commit_name(RUN, SHARD), dataclasses.replace(commit, **{kind: other}).to_json())
    return file.name


def with_value(column: str, value: object, row: int = 0) -> Callable[[pa.Table], pa.Table]:
    def changed(rows: pa.Table) -> pa.Table:
        values = rows[column].to_pylist()
        values[row] = value
        return rows.set_column(
            rows.column_names.index(column), rows.field(column), [pa.array(values, rows[column].type)]
        )

    return changed


def with_counts(counts: str) -> Callable[[MaskPrediction], MaskPrediction]:
    return lambda one: dataclasses.replace(one, segmentation=Rle(size_hw=(10, 10), counts=counts))


@pytest.mark.parametrize("form", [name for name in FORMATS if name != "coco"])
@pytest.mark.parametrize(
    ("counts", "problem"), [("~", "outside '0' to 'o'"), ("5", "cover 5 pixels"), ("", "are empty")]
)
def test_an_export_that_meets_a_damaged_mask_names_mask_and_file_and_leaves_nothing(
    form: str, counts: str, problem: str, tmp_path: Path
) -> None:
    store = write_masks(tmp_path, with_counts(counts))
    target = tmp_path / f"new{FORMATS[form]}"
    ended = command("export", store.root, "--to", target, "--format", form)
    assert ended.is_refusal, ended
    assert problem in ended.errors
    assert read_commit(store, RUN, SHARD).annotations.name in ended.errors
    assert "verify" in ended.errors
    assert not target.exists()


def test_evaluate_lays_a_damaged_mask_to_the_labels_and_not_to_the_truth(tmp_path: Path) -> None:
    store = write_masks(tmp_path, with_counts("~"))
    ended = command("evaluate", store.root, "--ground-truth", tmp_path / "truth.json")
    assert ended.is_refusal, ended
    assert "a mask of run run-1 cannot be decoded" in ended.errors
    assert "verify" in ended.errors


UNKNOWN = {
    "an image id in images": ("images", with_value("image_id", "0002.pnf")),
    "an image id in annotations": ("annotations", with_value("image_id", "0002.pnf")),
    "a number of masks": ("images", with_value("num_annotations", 6)),
    "a run id in annotations": ("annotations", with_value("run_id", "run-3")),
    "a row less": ("annotations", lambda rows: rows.slice(1)),
}


@pytest.mark.parametrize("damage", UNKNOWN.values(), ids=UNKNOWN)
def test_masks_that_do_not_fit_the_images_are_refused_by_name(
    damage: tuple[Kind, Callable[[pa.Table], pa.Table]], tmp_path: Path
) -> None:
    store = write_masks(tmp_path)
    name = rewrite(store, *damage)
    commands = {
        "report": ("report", store.root, "--to", tmp_path / "new.html"),
        "evaluate": ("evaluate", store.root, "--ground-truth", tmp_path / "truth.json"),
        **{
            form: ("export", store.root, "--to", tmp_path / f"new-{form}{suffix}", "--format", form)
            for form, suffix in FORMATS.items()
        },
    }
    before = set(tmp_path.iterdir())
    for what, words in commands.items():
        ended = command(*words)
        assert ended.is_refusal, (what, ended)
        assert name in ended.errors, (what, ended)
        assert "verify" in ended.errors
    assert set(tmp_path.iterdir()) == before
    with pytest.raises(ValueError, match="do not agree"):
        table(store.root, task="genseg")


def test_masks_without_a_row_of_their_image_are_counted(tmp_path: Path) -> None:
    store = write_masks(tmp_path)
    rewrite(store, "images", with_value("image_id", "0002.pnf"))
    ended = command("export", store.root, "--to", tmp_path / "new.json")
    assert "2 masks are of images without a row" in ended.errors, ended


def without_page_headers(data: bytes) -> bytes:
    """Damage what lies before the rows of the first column: DuckDB tells of that in words that name no file."""
    return data[:4] + bytes([data[4] ^ 4]) + data[5:]


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_commands_name_the_file_whose_pages_cannot_be_read(kind: Kind, tmp_path: Path) -> None:
    store = write_masks(tmp_path)
    commit = read_commit(store, RUN, SHARD)
    name = (commit.annotations if kind == "annotations" else commit.images).name
    store.write(name, without_page_headers(store.read(name)))
    commands = {
        "query": ("query", store.root, f"SELECT * FROM {kind}"),
        "query --to": ("query", store.root, f"SELECT * FROM {kind}", "--to", tmp_path / "new.csv"),
        "report": ("report", store.root, "--to", tmp_path / "new.html"),
        "evaluate": ("evaluate", store.root, "--ground-truth", tmp_path / "truth.json"),
        "export": ("export", store.root, "--to", tmp_path / "new.json"),
    }
    for what, words in commands.items():
        ended = command(*words)
        assert ended.is_refusal, (what, ended)
        assert f"{name} does not have the committed SHA-256" in ended.errors, (what, ended)


def test_a_wrong_query_over_a_damaged_output_is_still_told_as_a_wrong_query(tmp_path: Path) -> None:
    store = write_masks(tmp_path)
    name = read_commit(store, RUN, SHARD).annotations.name
    store.write(name, without_page_headers(store.read(name)))
    ended = command("query", store.root, "SELECT no_such_column FROM images")
    assert ended.is_refusal, ended
    assert "no_such_column" in ended.errors
    assert "SHA-256" not in ended.errors
