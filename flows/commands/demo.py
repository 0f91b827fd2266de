"""`xsam-label demo`: label example scenes and photographs with the included models, and show the resulting table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from flows.commands.launch import launch
from flows.commands.report import write_report
from flows.config import ConfigError, parse_config
from pipelines.evaluation.evaluate import evaluate_output
from pipelines.evaluation.ground_truth import InstanceTruth, read_ground_truth
from pipelines.images.decode import DecodeLimits, decode_image
from pipelines.masks.drawing import LabeledMask, contact_sheet, draw_masks
from pipelines.planning.plan import require_plan
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import ImageRef, Rle

TRUTH_FILE = "instances.json"
PHOTO_CATEGORIES = ("person", "cat", "dog", "cup", "flower", "rocket", "camera", "sky")
PHOTO_MODEL = "xsam-photos"

_DRAWN_MASKS, _DRAWN_SCORE = 6, 0.3


def run_demo(
    scenes: Path, photos: Path, prompts: Path | None, output: Path, console: Console, *, prefect: bool
) -> bool:
    """Label scenes, for which there is ground truth, and photographs with the included models; then show the table.

    Returns:
        Whether every image is accounted for.

    Raises:
        ConfigError: a folder of images does not exist.
    """
    for folder in (scenes, photos):
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; run the demo from a checkout, or say where the pictures are")
    truth = read_ground_truth(str(scenes / TRUTH_FILE))
    assert isinstance(truth, InstanceTruth)
    names = sorted(truth.categories)
    asked = asked_of(scenes, photos, prompts, names)
    is_complete = True
    for run_id, values in asked.items():
        console.rule(f"{run_id}: {values['source']['uri']}")
        is_complete &= label(run_id, values, output, console, prefect=prefect)
    console.rule("what the table holds")
    show_table(output, "scenes", console)
    ask_table(output, console)
    precision = scene_precision(output, "scenes", truth)
    console.print(
        f"Scenes against their truth, {len(names)} names asked at once: mask AP {100 * (precision['AP'] or 0):.1f}, "
        f"AP50 {100 * (precision['AP50'] or 0):.1f}."
    )
    console.print(f"Look at it: [bold]{draw_overlays(output, list(asked))}[/]")
    write_report(str(output), str(output / "report.html"), console, overwrite=True)
    return is_complete


def asked_of(scenes: Path, photos: Path, prompts: Path | None, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Return what is asked in each run.

    No words, for what small models say of a picture is mostly wrong; and no names of photographs, if there are prompts
    that mark what to cut out.
    """
    return {
        "photos": {
            "source": {"uri": str(photos)},
            "categories": () if prompts else PHOTO_CATEGORIES,
            "prompts": str(prompts) if prompts else None,
            "model": {"path": PHOTO_MODEL},
        },
        # One output for both, so that one table shows them; no image in one folder has a name used in the other.
        "scenes": {"source": {"uri": str(scenes), "same_collection": True}, "categories": names},
    }


def label(run_id: str, values: Mapping[str, Any], output: Path, console: Console, *, prefect: bool) -> bool:
    """Label one folder as a run of its own; return whether every image is accounted for."""
    config = parse_config(
        {
            **values,
            "output": {"uri": str(output), "run_id": run_id},
            "model": {"max_masks_per_image": 20, **values.get("model", {})},
            "plan": {"images_per_shard": 4},
            "label": {"batch_size": 4},
            "pool": {"replicas": 2},
        },
        origin="the demo",
    )
    return launch(config, console, prefect=prefect).has_succeeded


def scene_precision(output: Path, run_id: str, truth: InstanceTruth) -> Mapping[str, float | None]:
    """Return mask AP and AP50, in [0, 1], of a run's instances against the truth."""
    store = open_store(str(output))
    found = evaluate_output(store, [require_plan(store, run_id)], truth)
    return next(one.figures for one in found.results if one.task == "ovseg" and not one.group)


def draw_overlays(output: Path, run_ids: Sequence[str]) -> Path | None:
    """Draw the best masks on every image and save them as one contact sheet; None if no image could be read."""
    store, limits = open_store(str(output)), DecodeLimits()
    pictures = []
    for run_id in run_ids:
        masks = _masks_to_draw(output, run_id)
        images = open_table(store, "images", run_id).to_table(filter=ds.field("width").is_valid())
        for row in images.to_pylist():
            ref = ImageRef(image_id=row["image_id"], uri=row["uri"])
            pixels = decode_image(Path(row["uri"]).read_bytes(), ref, limits).pixels
            found = masks.get(row["image_id"], [])[::-1]
            pictures.append((row["image_id"], draw_masks(pixels, found), found))
    if not pictures:
        return None
    contact_sheet(pictures, columns=8).save(output / "overlays.png")
    return output / "overlays.png"


def _masks_to_draw(output: Path, run_id: str) -> dict[str, list[LabeledMask]]:
    """Return the most confident instances of each image, best first; a mask found under two names is drawn once."""
    is_sure = (ds.field("score") >= _DRAWN_SCORE) & ds.field("task").isin(["ovseg", "vgdseg", "intseg"])
    masks: dict[str, list[LabeledMask]] = {}
    for row in open_table(open_store(str(output)), "annotations", run_id).to_table(filter=is_sure).to_pylist():
        drawn = masks.setdefault(row["image_id"], [])
        segmentation = Rle.from_coco(row["segmentation"])
        if len(drawn) < _DRAWN_MASKS and all(mask.segmentation != segmentation for mask in drawn):
            color = len(drawn)
            drawn.append(
                LabeledMask(segmentation=segmentation, name=row["category_name"], score=row["score"], color=color)
            )
    return masks


def show_table(output: Path, run_id: str, console: Console) -> None:
    """Print the best mask of each image of a run."""
    best = ds.field("rank") == 0
    rows = open_table(open_store(str(output)), "annotations", run_id).to_table(filter=best).to_pylist()
    table = Table(title=f"the best mask of each picture of run {run_id}, from the annotations table")
    for name in ("image_id", "task", "category_name", "score", "bbox (x, y, w, h)", "area", "segmentation.counts"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        box = ", ".join(f"{row[f'bbox_{side}']:.0f}" for side in "xywh")
        counts = row["segmentation"]["counts"]
        what = (row["image_id"], row["task"], row["category_name"])
        table.add_row(*what, f"{row['score']:.2f}", box, str(row["area"]), counts[:24])
    console.print(table)


def ask_table(output: Path, console: Console) -> None:
    """Print an SQL query over the table's files, and its answer."""
    query = (
        "SELECT run_id, task, count(*) AS masks, count(DISTINCT image_id) AS images, round(avg(score), 2) AS score\n"
        f"FROM '{output}/annotations/*/*.parquet' GROUP BY ALL ORDER BY run_id, task"
    )
    console.print(f"Ask it with DuckDB:\n[bold]{query}[/]")
    import duckdb

    answer = duckdb.sql(query)
    table = Table(*answer.columns)
    for row in answer.fetchall():
        table.add_row(*map(str, row))
    console.print(table)
