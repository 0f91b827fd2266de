"""The commands that read an output (`status`, `query`, `report`, ...), and `vacuum`, `compact`, `publish`, `forget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.terminal import (
    JsonOption,
    OutputArgument,
    OverwriteOption,
    checked_run_id,
    command,
    console,
    split_names,
)
from flows.process.streams import outlive_terminal

app = typer.Typer()
audit = typer.Typer(no_args_is_help=True, help="Measure labels by a sample that a person checks: docs/audit.md.")
app.add_typer(audit, name="audit")

RunIdOption = Annotated[
    str | None, typer.Option(help="Name of the run; by default all of the output's.", callback=checked_run_id)
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="First compare every file with the hash in its commit, which reads all of them.")
]
DropRemovedOption = Annotated[
    bool, typer.Option("--drop-removed", help="Without prompts that the latest run does not ask any more.")
]


@command(app, "xsam-label status my-labels")
def status(
    output: OutputArgument,
    run_id: Annotated[
        str | None, typer.Option(help="One run; by default the last that is not finished.", callback=checked_run_id)
    ] = None,
    gpu_price: Annotated[float | None, typer.Option(help="Price of a GPU hour, instead of the config's.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how far runs are, from commits alone: works from any machine while they go on."""
    from flows.commands.status import show_status

    _checked(output, False)
    show_status(output, run_id, console, gpu_price=gpu_price, as_json=as_json)


@command(app, "xsam-label approve my-labels")
def approve(
    output: OutputArgument,
    run_id: Annotated[
        str | None, typer.Option(help="The run; by default the last that waits.", callback=checked_run_id)
    ] = None,
) -> None:
    """Let a run go on whose first images were not as expected: docs/canary.md."""
    from flows.commands.status import approve_run

    approve_run(output, run_id, console)


@command(app, "xsam-label verify my-labels --quick")
def verify(
    output: OutputArgument,
    run_id: RunIdOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only check that files exist with their committed sizes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute every count and hash from the objects. Exit code 0 only if the table is whole."""
    from flows.commands.inspect import show_verify

    raise typer.Exit(0 if show_verify(output, run_id, console, deep=not quick, as_json=as_json) else 1)


@command(app, "xsam-label vacuum my-labels --dry-run")
def vacuum(
    output: OutputArgument,
    run_id: RunIdOption = None,
    older_than: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="HOURS",
            help="Hours, as a number, since a file was written, if its shard is not committed yet.",
        ),
    ] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete files that no commit names and compactions that a newer one has replaced, if older than --older-than."""
    from flows.commands.inspect import show_vacuum

    if not dry_run:
        outlive_terminal()
    done = show_vacuum(output, run_id, console, older_than_s=3600 * older_than, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(0 if done else 1)


@command(app, "xsam-label compact my-labels", "compact")
def compact_output(output: OutputArgument, as_json: JsonOption = False) -> None:
    """Write all committed rows once more, to few large files for other programs. The table stays as it is."""
    from flows.commands.inspect import show_compact

    outlive_terminal()
    show_compact(output, console, as_json=as_json)


@command(app, "xsam-label publish my-labels --delta")
def publish(
    output: OutputArgument,
    delta: Annotated[bool, typer.Option("--delta", help="Write the Delta logs of both tables.")] = False,
    iceberg: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOG.NAMESPACE",
            help="Let the tables of this namespace follow, in a catalog of pyiceberg's configuration.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Let readers of Delta or Iceberg tables see the current rows, in the files that are there: docs/lakehouse.md."""
    from flows.commands.publish import show_publish

    if not delta and not iceberg:
        raise typer.BadParameter("say as what to publish: --delta, or --iceberg CATALOG.NAMESPACE")
    outlive_terminal()
    show_publish(output, console, iceberg=iceberg, as_json=as_json)


@command(app, "xsam-label forget my-labels --images-where \"image_id LIKE 'jane/%'\" --dry-run")
def forget(
    output: OutputArgument,
    images_where: Annotated[
        str, typer.Option(help="Images that fit this SQL condition, e.g. \"image_id LIKE 'jane/%'\".")
    ] = "",
    image_ids: Annotated[Path | None, typer.Option(help="Text file of further images' ids, one a line.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be erased.")] = False,
) -> None:
    """Erase all that an output holds of some images, and never ask them again.

    Without a condition, completes an erasure that was interrupted.
    """
    from flows.commands.forget import run_forget

    if not dry_run:
        outlive_terminal()
    done = run_forget(output, console, images_where=images_where, ids_file=image_ids, is_sure=yes, dry_run=dry_run)
    raise typer.Exit(0 if done else 1)


@command(app, "xsam-label query my-labels 'SELECT category_name, count(*) FROM annotations GROUP BY 1'")
def query(
    output: OutputArgument,
    sql: Annotated[str, typer.Argument(help='One SELECT, e.g. "SELECT category_name, count(*) FROM annotations".')],
    to: Annotated[str | None, typer.Option(help="New file for all rows: .csv, .json, .jsonl or .parquet.")] = None,
    overwrite: OverwriteOption = False,
    text_format: Annotated[
        str | None,
        typer.Option("--format", help="table (the default on a terminal), csv (in a pipe or file), json, jsonl."),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Only these columns of the result, e.g. image_id,score; several times, too."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="How many rows to print; by default all, and of a table the first 40.")
    ] = None,
    image_id: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this image; repeatable. Its files alone are opened: as fast among millions as among few."
        ),
    ] = None,
    drop_removed: DropRemovedOption = False,
    check: CheckOption = False,
) -> None:
    """Ask an output in SQL (DuckDB): annotations, images, coverage, conflicts, runs, prompts, ... (docs/query.md)."""
    from flows.commands.query import run_query

    if to is not None:
        outlive_terminal()
    _checked(output, check)
    run_query(
        output,
        sql,
        console,
        to=to,
        overwrite=overwrite,
        text_format=text_format,
        columns=split_names(columns),
        max_rows=rows,
        drop_removed=drop_removed,
        image_ids=image_id,
    )


@command(app, "xsam-label report my-labels --to my-labels.html")
def report(
    output: OutputArgument,
    to: Annotated[str, typer.Option(help="New file to write the page to.")] = "report.html",
    overwrite: OverwriteOption = False,
    drop_removed: DropRemovedOption = False,
    check: CheckOption = False,
) -> None:
    """Write one HTML page that shows an output: pictures with masks, scores, failures, throughput, provenance."""
    from flows.commands.report import write_report

    outlive_terminal()
    _checked(output, check)
    write_report(output, to, console, overwrite=overwrite, drop_removed=drop_removed)


@command(app, "xsam-label export my-labels --format coco --where 'score >= 0.5' --to train.json")
def export(
    output: OutputArgument,
    to: Annotated[str, typer.Option(help="New folder, or new .json (coco, label-studio) or .xml (cvat) file.")],
    format_name: Annotated[str, typer.Option("--format", help="coco, yolo, panoptic, label-studio or cvat.")] = "coco",
    where: Annotated[
        str, typer.Option(help='Only masks that fit this SQL condition, e.g. "score >= 0.5 AND area > 100".')
    ] = "",
    images_where: Annotated[
        str, typer.Option(help="Only images that fit this SQL condition, e.g. \"image_id LIKE '2026/%'\".")
    ] = "",
    task: Annotated[list[str] | None, typer.Option(help="Only masks of this task; repeatable: docs/export.md.")] = None,
    categories: Annotated[
        list[str] | None,
        typer.Option(help="Only these names, numbered in this order: 'dog, \"bowl, glass\"'; several times, too."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Shares of the images, e.g. train=0.8,val=0.1,test=0.1.")] = None,
    empty: Annotated[bool, typer.Option(help="Also images without a mask, which show what is not there.")] = True,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy the images too (yolo).")] = False,
    polygons: Annotated[
        bool, typer.Option("--polygons", help="Masks as polygons, for tools that read no run lengths (coco).")
    ] = False,
    image_url: Annotated[
        str, typer.Option(help="Where tools load an image: this with its id at the end; else its own URI.")
    ] = "",
    drop_removed: DropRemovedOption = False,
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
) -> None:
    """Write the table, or a part of it, in another tool's format. The output is only read."""
    from flows.commands.export import run_export
    from pipelines.export.splits import Splits
    from pipelines.export.write import Choice

    outlive_terminal()
    _checked(output, check)
    choice = Choice(
        where=where,
        images_where=images_where,
        tasks=tuple(task or ()),
        categories=tuple(split_names(categories) or ()),
        splits=Splits.parse(split) if split else Splits(),
        with_empty=empty,
        copy_images=copy_images,
        polygons=polygons,
        image_url=image_url,
        drop_removed=drop_removed,
    )
    run_export(output, to, format_name, choice, console, overwrite=overwrite)


@command(app, "xsam-label import my-labels edited.json --exported train.json", "import")
def import_file(
    output: OutputArgument,
    file: Annotated[str, typer.Argument(help="The file that came back, e.g. annotations.xml.")],
    format_name: Annotated[str, typer.Option("--format", help="coco, cvat or label-studio.")] = "coco",
    exported: Annotated[
        str, typer.Option(help="The file as it was exported: tells which masks were deleted, if FILE does not.")
    ] = "",
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="People have looked at every image of FILE: what is unchanged is right.")
    ] = False,
    unchanged_iou: Annotated[
        float, typer.Option(min=0.5, max=1, help="Masks that agree at least so well are unchanged, if a tool redraws.")
    ] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be imported.")] = False,
) -> None:
    """Take masks that people have corrected in another tool as answers: no model's run replaces them."""
    from flows.commands.export import run_import
    from pipelines.importing.imports import ImportChoice

    if not dry_run:
        outlive_terminal()
    _checked(output, False)
    choice = ImportChoice(format_name=format_name, exported=exported, is_reviewed=reviewed, unchanged_iou=unchanged_iou)
    raise typer.Exit(0 if run_import(output, file, choice, console, dry_run=dry_run) else 1)


@command(app, "xsam-label evaluate my-labels --ground-truth instances.json")
def evaluate(
    output: OutputArgument,
    ground_truth: Annotated[
        str, typer.Option(help="JSON file: COCO instances, COCO panoptic, or a list of phrases with masks.")
    ],
    png_folder: Annotated[
        str | None, typer.Option(help="Folder of COCO panoptic's maps; by default beside the file, by its name.")
    ] = None,
    run_id: RunIdOption = None,
    count_unasked: Annotated[
        bool, typer.Option("--count-unasked", help="Count categories that were never asked as not found.")
    ] = False,
    where: Annotated[
        str, typer.Option(help='Count only masks that fit this SQL condition as found, e.g. "score >= 0.3".')
    ] = "",
    score: Annotated[
        str | None,
        typer.Option(help="Tell precision, recall, F1 and confusion of keeping masks from this score on; or: best."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse a truth with entries that cannot be used, instead of counting them."),
    ] = False,
    to: Annotated[str | None, typer.Option(help="New .json file to write all figures to.")] = None,
    as_json: JsonOption = False,
    plots: Annotated[str | None, typer.Option(help="New folder for plots: precision and recall, categories.")] = None,
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
) -> None:
    """Measure a run against ground truth: AP, PQ, mIoU, cIoU, by task. Writes nothing into the output."""
    from flows.commands.comparing.evaluate import EvaluationChoice, read_score, run_evaluation

    choice = EvaluationChoice(
        run_id=run_id,
        png_folder=png_folder,
        is_strict=strict,
        count_unasked=count_unasked,
        where=where,
        score=read_score(score),
    )
    if to is not None or plots is not None:
        outlive_terminal()
    _checked(output, check)
    run_evaluation(output, ground_truth, console, choice, to=to, plots=plots, overwrite=overwrite, as_json=as_json)


def _checked_side(run_id: str | None) -> str | None:
    try:
        return checked_run_id(run_id)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"{error}; another output is named by --other") from error


@command(app, "xsam-label diff my-labels --page changes.html")
def diff(
    output: OutputArgument,
    before: Annotated[
        str | None, typer.Argument(help="A run of it; by default what is current.", callback=_checked_side)
    ] = None,
    after: Annotated[
        str | None,
        typer.Argument(help="The run to compare it with; by default what is current.", callback=_checked_side),
    ] = None,
    other: Annotated[
        str | None, typer.Option(help="Another output, of which AFTER is; images go by their image_id.")
    ] = None,
    where: Annotated[
        str, typer.Option(help='Only masks that fit this SQL condition, on both sides, e.g. "score >= 0.5".')
    ] = "",
    kept_iou: Annotated[
        float, typer.Option(min=0.5, max=1, help="Masks of one name that agree at least so well are kept.")
    ] = 0.9,
    as_json: JsonOption = False,
    to: Annotated[str | None, typer.Option(help="New .parquet file for what has changed: a row for each mask.")] = None,
    with_kept: Annotated[bool, typer.Option("--with-kept", help="Rows for kept masks, too.")] = False,
    page: Annotated[str | None, typer.Option(help="New .html file with pictures of the largest changes.")] = None,
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
) -> None:
    """Compare two runs, or two outputs: masks kept, moved, relabeled, added and lost.

    Of an output alone: what its last run has changed.
    """
    from flows.commands.comparing.diff import DiffChoice, run_diff

    if to is not None or page is not None:
        outlive_terminal()
    for one in (output, other):
        if one is not None:
            _checked(one, check)
    choice = DiffChoice(
        before=before,
        after=after,
        other=other,
        where=where,
        kept_iou=kept_iou,
        as_json=as_json,
        table=to,
        page=page,
        with_kept=with_kept,
        overwrite=overwrite,
    )
    run_diff(output, choice, console)


@command(audit, "xsam-label audit sample my-labels --to review/", "sample")
def audit_sample(
    output: OutputArgument,
    to: Annotated[str, typer.Option(help="New folder for the export and the record of the sample.")],
    format_name: Annotated[str, typer.Option("--format", help="coco, cvat or label-studio.")] = "cvat",
    score: Annotated[
        float, typer.Option(min=0, max=1, help="Masks from this score on are checked; others count as not found.")
    ] = 0.5,
    per_band: Annotated[int, typer.Option(min=1, help="Images of each band of scores of a category.")] = 20,
    without: Annotated[
        int, typer.Option(min=1, help="Images in which none of a category was found: they tell what is missed.")
    ] = 100,
    categories: Annotated[
        list[str] | None, typer.Option(help="Only these names: 'dog, \"bowl, glass\"'; several times, too.")
    ] = None,
    task: Annotated[str, typer.Option(help="ovseg or genseg, if the output holds masks of both.")] = "",
    images_where: Annotated[
        str, typer.Option(help="Only images that fit this SQL condition, e.g. \"image_id LIKE '2026/%'\".")
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Another one draws other images.")] = 0,
    image_url: Annotated[
        str, typer.Option(help="Where tools load an image: this with its id at the end; else its own URI.")
    ] = "",
    overwrite: OverwriteOption = False,
    check: CheckOption = False,
) -> None:
    """Draw images for a person to check, and write them as an export with what is needed to weight the result."""
    from flows.commands.comparing.audit import run_audit_sample
    from pipelines.audit.draw import SampleSize
    from pipelines.audit.sample import AuditChoice

    outlive_terminal()
    _checked(output, check)
    choice = AuditChoice(
        score=score,
        categories=tuple(split_names(categories) or ()),
        task=task,
        images_where=images_where,
        size=SampleSize(per_band=per_band, without=without),
        seed=seed,
        image_url=image_url,
    )
    run_audit_sample(output, to, format_name, choice, console, overwrite=overwrite)


@command(audit, "xsam-label audit result review/ corrected.xml", "result")
def audit_result(
    sample: Annotated[str, typer.Argument(help="The folder that `audit sample` has written.")],
    file: Annotated[str, typer.Argument(help="The file that came back, e.g. annotations.xml.")],
    format_name: Annotated[str, typer.Option("--format", help="Of FILE, if it is not that of the sample.")] = "",
    iou: Annotated[
        float, typer.Option(min=0.01, max=1, help="A mask is right if it agrees at least so well with the person's.")
    ] = 0.5,
    as_json: JsonOption = False,
    calibration: Annotated[
        str | None, typer.Option(help="New .parquet or .csv with the probability that a mask of a score is right.")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Print precision and recall of each category with 95 % intervals, from a sample that a person has checked."""
    from flows.commands.comparing.audit import run_audit_result

    if calibration is not None:
        outlive_terminal()
    run_audit_result(
        sample,
        file,
        console,
        iou=iou,
        format_name=format_name,
        as_json=as_json,
        calibration=calibration,
        overwrite=overwrite,
    )


def _checked(output: str, check: bool) -> None:
    """Refuse an output with a lost plan; with ``check``, compare all files with their hashes, too."""
    from flows.commands.inspect import check_output
    from pipelines.planning.plan import check_no_plan_lost
    from pipelines.storage.store import open_store

    check_no_plan_lost(open_store(output))
    if check:
        check_output(output, console)
