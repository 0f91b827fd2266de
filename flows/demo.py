"""`xsam-label demo`: the main job on the example photographs, with everything embedded."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from flows.config import ConfigError, parse_config
from flows.launch import launch
from pipelines.decode import DecodeLimits, decode_image
from pipelines.overlay import LabelledMask, contact_sheet, draw_masks
from pipelines.storage import open_store
from pipelines.table import open_table
from pipelines.types import ImageRef, Rle

_DRAWN_MASKS = 3

CATEGORIES = ("person", "cat", "cup", "building", "flower", "sky")
PHRASE = "the nearest thing"


def run_demo(photos: Path, prompts: Path | None, output: Path, console: Console, *, prefect: bool) -> bool:
    """Label photographs with an untrained model written into the output, then show the table.

    Returns:
        Whether every photograph is accounted for.

    Raises:
        ConfigError: the folder of photographs does not exist.
    """
    if not photos.is_dir():
        raise ConfigError(f"{photos} is not a folder; run the demo from a checkout, or give --photos")
    model = output / "_model"
    if not (model / "config.json").is_file():
        write_model(model)
    console.print(
        "[yellow]The demo's model is untrained: its weights are random, so its masks and words mean nothing yet.[/] "
        "Everything around it is real: flow, replicas, decoding, masks, commits."
    )
    config = parse_config(
        {
            "source": str(photos),
            "output": str(output),
            "model": {"path": str(model), "max_masks_per_image": 20, "max_new_tokens": 16},
            "categories": CATEGORIES,
            "phrases": [PHRASE],
            "caption": True,
            "prompts": str(prompts) if prompts else None,
            "plan": {"images_per_shard": 4},
            "label": {"batch_size": 4},
            "pool": {"replicas": 2},
        },
        origin="the demo",
    )
    summary = launch(config, console, prefect=prefect)
    show_table(output, summary.run_id, console)
    ask_table(output, console)
    console.print(f"Look at it: [bold]{draw_overlays(output, summary.run_id)}[/]")
    return summary.ok


def write_model(folder: Path) -> None:
    """Write the untrained model, quietly."""
    from actors.predictor import write_untrained_model

    with contextlib.redirect_stderr(io.StringIO()):
        write_untrained_model(folder)


def draw_overlays(output: Path, run_id: str) -> Path | None:
    """Draw the best masks on every photograph and write them as one sheet; None if no photograph could be read."""
    store, config = open_store(str(output)), DecodeLimits()
    best = ds.field("rank") < _DRAWN_MASKS
    masks: dict[str, list[LabelledMask]] = {}
    for row in open_table(store, "annotations", run_id).to_table(filter=best).to_pylist():
        segmentation = Rle(size_hw=tuple(row["segmentation"]["size"]), counts=row["segmentation"]["counts"])
        masks.setdefault(row["image_id"], []).append(
            LabelledMask(
                segmentation=segmentation, name=row["category_name"], score=row["score"], color=row["category_id"]
            )
        )
    pictures = []
    for row in open_table(store, "images", run_id).to_table(filter=ds.field("width").is_valid()).to_pylist():
        ref = ImageRef(image_id=row["image_id"], uri=row["uri"])
        pixels = decode_image(Path(row["uri"]).read_bytes(), ref, config).pixels
        pictures.append((row["image_id"], draw_masks(pixels, masks.get(row["image_id"], [])[::-1])))
    if not pictures:
        return None
    contact_sheet(pictures).save(output / "overlays.jpg", quality=85)
    return output / "overlays.jpg"


def show_table(output: Path, run_id: str, console: Console) -> None:
    """Print the best mask of each photograph."""
    best = ds.field("rank") == 0
    rows = open_table(open_store(str(output)), "annotations", run_id).to_table(filter=best).to_pylist()
    table = Table(title="the best mask of each photograph, from the annotations table", title_justify="left")
    for name in ("image_id", "task", "category_name", "score", "bbox (x, y, w, h)", "area", "segmentation.counts"):
        table.add_column(name, no_wrap=True)
    for row in rows:
        box = ", ".join(f"{row[f'bbox_{side}']:.0f}" for side in "xywh")
        counts = row["segmentation"]["counts"]
        what = (row["image_id"], row["task"], row["category_name"])
        table.add_row(*what, f"{row['score']:.2f}", box, str(row["area"]), counts[:24])
    console.print(table)


def ask_table(output: Path, console: Console) -> None:
    """Ask the table a question in SQL, as a data team would; answered where DuckDB is installed."""
    query = (
        "SELECT task, count(*) AS masks, count(DISTINCT image_id) AS images, round(avg(score), 2) AS mean_score\n"
        f"FROM '{output}/annotations/*/*.parquet' GROUP BY ALL ORDER BY task"
    )
    console.print(f"Ask it with DuckDB:\n[bold]{query}[/]")
    if importlib.util.find_spec("duckdb") is None:
        return
    import duckdb

    answer = duckdb.sql(query)
    table = Table(*answer.columns)
    for row in answer.fetchall():
        table.add_row(*map(str, row))
    console.print(table)
