"""The command line, `xsam-label ...`: arguments in, one call, a table out. Torch, ray and prefect load only to run."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from flows import signals

app = typer.Typer(
    help="Label image collections with X-SAM: Parquet tables of COCO RLE masks, committed exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
errors = Console(highlight=False, soft_wrap=True, stderr=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML or YAML file with the run's settings.")]
SourceOption = Annotated[
    str | None, typer.Option(help="Folder, bucket prefix, glob, list file (.txt) or table (.csv, .parquet, .jsonl).")
]
OutputOption = Annotated[str | None, typer.Option(help="Folder or bucket prefix for the table.")]
CategoriesOption = Annotated[str | None, typer.Option(help='Names to segment, e.g. "car, traffic light".')]
TaskOption = Annotated[
    str | None, typer.Option(help="ovseg or genseg for the categories, or either with _semantic or _panoptic.")
]
PhraseOption = Annotated[
    list[str] | None, typer.Option(help='One thing described, e.g. "the man on the left". May be given several times.')
]
QuestionOption = Annotated[
    list[str] | None, typer.Option(help='Answered by a mask, e.g. "What could break?". May be given several times.')
]
CaptionOption = Annotated[
    bool | None, typer.Option("--caption/--no-caption", help="Describe every image, with a mask for each phrase.")
]
PromptsOption = Annotated[
    str | None, typer.Option(help="Table of regions and sentences for single images (Parquet, CSV or JSONL).")
]
ModelOption = Annotated[str | None, typer.Option(help="Folder of a model, as save_pretrained writes it.")]
ReplicasOption = Annotated[int | None, typer.Option(help="Loaded models that label side by side.")]
GpusOption = Annotated[float | None, typer.Option(help="GPUs for each replica; a fraction shares one.")]
LimitOption = Annotated[int | None, typer.Option(help="Label only the first so many images.")]
RunIdOption = Annotated[str | None, typer.Option(help="Name of the run; needed where an output holds several.")]
RunnerOption = Annotated[str | None, typer.Option(help="ray (replicas in processes) or in_process.")]
IncrementalOption = Annotated[
    bool | None,
    typer.Option("--incremental", help="Only what earlier runs have not asked: new and changed images, new prompts."),
]
PrefectOption = Annotated[
    bool, typer.Option(help="Run as a Prefect flow: on the server of PREFECT_API_URL, else on an embedded one.")
]
OutputArgument = Annotated[str, typer.Argument(help="Folder or bucket prefix that holds the table.")]

_INTERRUPTED = 128 + signal.SIGINT


@app.command()
def run(
    config: ConfigOption = None,
    source: SourceOption = None,
    output: OutputOption = None,
    categories: CategoriesOption = None,
    task: TaskOption = None,
    phrase: PhraseOption = None,
    question: QuestionOption = None,
    caption: CaptionOption = None,
    prompts: PromptsOption = None,
    model: ModelOption = None,
    replicas: ReplicasOption = None,
    gpus_per_replica: GpusOption = None,
    limit: LimitOption = None,
    run_id: RunIdOption = None,
    incremental: IncrementalOption = None,
    runner: RunnerOption = None,
    prefect: PrefectOption = True,
) -> None:
    """Label a collection, or resume it. Exit code 0 only when every listed image is accounted for."""
    from flows.launch import launch

    asked = _asked(categories, task, phrase, question, caption, prompts)
    pool = {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner}
    overrides = (
        _overrides(source, output, model, limit, run_id) | asked | {"pool": pool, "incremental": incremental or None}
    )
    raise typer.Exit(0 if launch(_config(config, overrides), console, prefect=prefect).ok else 1)


@app.command()
def plan(
    config: ConfigOption = None,
    source: SourceOption = None,
    output: OutputOption = None,
    categories: CategoriesOption = None,
    task: TaskOption = None,
    phrase: PhraseOption = None,
    question: QuestionOption = None,
    caption: CaptionOption = None,
    prompts: PromptsOption = None,
    model: ModelOption = None,
    limit: LimitOption = None,
    run_id: RunIdOption = None,
    incremental: IncrementalOption = None,
) -> None:
    """Show what would run: images, bytes, shards. Writes nothing."""
    from flows.inspect import show_plan

    asked = _asked(categories, task, phrase, question, caption, prompts)
    overrides = _overrides(source, output, model, limit, run_id) | asked | {"incremental": incremental or None}
    show_plan(_config(config, overrides), console)


@app.command()
def retry(
    output: OutputArgument,
    reason: Annotated[
        list[str] | None, typer.Option(help='Only images quarantined for it, e.g. "out_of_memory". Several times.')
    ] = None,
    run_id: RunIdOption = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML or YAML file with what is to differ from the run's.")
    ] = None,
    replicas: ReplicasOption = None,
    gpus_per_replica: GpusOption = None,
    runner: RunnerOption = None,
    prefect: PrefectOption = True,
) -> None:
    """Label quarantined images again, those of each run as a run of their own whose rows take the place of theirs."""
    from flows.config import merge, read_values
    from flows.launch import launch
    from flows.retry import retry_configs

    pool = {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner}
    overrides = merge(read_values(config) if config else {}, {"pool": pool})
    again = retry_configs(output, run_id, reason or [], overrides)
    if not again:
        console.print("no image is quarantined" + (f" for {', '.join(reason)}" if reason else ""))
    ended = [launch(one, console, prefect=prefect).ok for one in again]
    raise typer.Exit(0 if all(ended) else 1)


@app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML or YAML file with the settings of every run.")],
    cron: Annotated[str | None, typer.Option(help='When runs are due, e.g. "0 2 * * *": every night at two.')] = None,
    interval: Annotated[
        float | None, typer.Option(help="Seconds between runs instead; the first in ten seconds.")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help='What --cron is meant in, e.g. "Europe/Berlin"; else UTC.')
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; by default that of the file.")] = None,
) -> None:
    """Label what is new on a schedule, on this machine, until SIGTERM or Ctrl-C. One run at a time."""
    from flows.config import load_config
    from flows.serve import Timetable
    from flows.serve import serve as serve_schedule

    timetable = Timetable(cron=cron, interval_s=interval, timezone=timezone)
    serve_schedule(load_config(config), timetable, name or config.stem, console)


@app.command()
def status(
    output: OutputArgument,
    run_id: Annotated[str | None, typer.Option(help="One run; by default the last that is not finished.")] = None,
    gpu_price: Annotated[float | None, typer.Option(help="Price of a GPU hour, instead of the config's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show how far runs are, from commits alone: works from any machine while they go on."""
    from flows.status import show_status

    show_status(output, run_id, console, gpu_price=gpu_price, as_json=as_json)


@app.command()
def verify(
    output: OutputArgument,
    run_id: RunIdOption = None,
    quick: Annotated[bool, typer.Option(help="Only check that files exist with their committed sizes.")] = False,
) -> None:
    """Recompute every count and hash from the objects. Exit code 0 only if the table is whole."""
    from flows.inspect import show_verify

    raise typer.Exit(0 if show_verify(output, run_id, console, deep=not quick) else 1)


@app.command()
def vacuum(
    output: OutputArgument,
    run_id: RunIdOption = None,
    dry_run: Annotated[bool, typer.Option(help="Only list what would be removed.")] = False,
) -> None:
    """Remove files that no commit names. Only while no driver works on the run."""
    from flows.inspect import show_vacuum

    show_vacuum(output, run_id, console, dry_run=dry_run)


@app.command()
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
    json_file: Annotated[Path | None, typer.Option("--json", help="New file to write all figures to.")] = None,
    plots: Annotated[str | None, typer.Option(help="New folder for plots: precision and recall, categories.")] = None,
) -> None:
    """Measure a run against ground truth: AP, PQ, mIoU, cIoU, by task. Writes nothing into the output."""
    from flows.evaluation import run_evaluation

    run_evaluation(
        output,
        ground_truth,
        console,
        png_folder=png_folder,
        run_id=run_id,
        count_unasked=count_unasked,
        json_file=json_file,
        plots=plots,
    )


@app.command()
def query(
    output: OutputArgument,
    sql: Annotated[str, typer.Argument(help='One SELECT, e.g. "SELECT category_name, count(*) FROM annotations".')],
    to: Annotated[Path | None, typer.Option(help="New file for all rows: .csv, .json, .jsonl or .parquet.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show.")] = 40,
) -> None:
    """Ask an output in SQL (DuckDB): annotations, images, coverage, runs, all_annotations, all_images."""
    from flows.query import run_query

    run_query(output, sql, console, to=to, max_rows=rows)


@app.command()
def report(
    output: OutputArgument,
    to: Annotated[Path, typer.Option(help="New file to write the page to.")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write one HTML page that shows an output: pictures with masks, scores, failures, throughput, provenance."""
    from flows.report import write_report

    write_report(output, to, console, overwrite=overwrite)


@app.command()
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
    task: Annotated[list[str] | None, typer.Option(help="Whose masks; several times. See docs/export.md.")] = None,
    categories: Annotated[
        str | None, typer.Option(help="Only these names, numbered in this order; else all, in order of name.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Shares of the images, e.g. train=0.8,val=0.1,test=0.1.")] = None,
    empty: Annotated[bool, typer.Option(help="Also images without a mask, which show what is not there.")] = True,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy the images too (yolo).")] = False,
    image_url: Annotated[
        str, typer.Option(help="Where tools load an image: this with its id at the end; else its own URI.")
    ] = "",
) -> None:
    """Write the table, or a part of it, in another tool's format. The output is only read."""
    from flows.export import run_export
    from pipelines.export import Choice
    from pipelines.exports.splits import Splits

    choice = Choice(
        where=where,
        images_where=images_where,
        tasks=tuple(task or ()),
        categories=tuple(_names(categories) or ()),
        splits=Splits.parse(split) if split else Splits(),
        with_empty=empty,
        copy_images=copy_images,
        image_url=image_url,
    )
    run_export(output, to, format_name, choice, console)


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file: examples/train_tiny.toml is one.")],
    output: Annotated[str | None, typer.Option(help="Folder of the run, instead of the file's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Save and stop after so long.")] = None,
    processes: Annotated[int, typer.Option(help="Training processes on this machine.")] = 1,
) -> None:
    """Train a model, or go on. Exit code 0 when it is trained, 3 when it stopped before its end."""
    from actors.train import train_model

    raise typer.Exit(train_model(config, output, max_minutes, processes))


@app.command()
def demo(
    scenes: Annotated[Path, typer.Option(help="Folder of scenes with their truth.")] = Path("examples/scenes"),
    photos: Annotated[Path, typer.Option(help="Folder of photographs.")] = Path("examples/photos"),
    prompts: Annotated[Path | None, typer.Option(help="Table of prompts for some of them.")] = Path(
        "examples/prompts.csv"
    ),
    output: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("demo-out"),
    prefect: PrefectOption = True,
) -> None:
    """Label the example pictures on this machine, without a GPU or a network."""
    from flows.demo import run_demo

    raise typer.Exit(0 if run_demo(scenes, photos, prompts, output, console, prefect=prefect) else 1)


def _overrides(
    source: str | None, output: str | None, model: str | None, limit: int | None, run_id: str | None
) -> dict[str, Any]:
    return {
        "source": {"uri": source},
        "output": {"uri": output, "run_id": run_id},
        "model": {"path": model},
        "plan": {"limit": limit},
    }


def _asked(
    categories: str | None,
    task: str | None,
    phrases: list[str] | None,
    questions: list[str] | None,
    caption: bool | None,
    prompts: str | None,
) -> dict[str, Any]:
    return {
        "categories": _names(categories),
        "task": task,
        "phrases": phrases or None,
        "questions": questions or None,
        "caption": caption,
        "prompts": prompts,
    }


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


def _config(path: Path | None, overrides: dict[str, Any]) -> Any:
    from flows.config import merge, parse_config, read_values

    values = read_values(path) if path else {}
    return parse_config(merge(values, overrides), origin=str(path) if path else "the command line")


def main() -> None:
    """Run the command line; an error that a user can mend is one message and exit code 2, not a traceback."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with signals.handled():
            code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except signals.Terminated:
        _stopped(signal.SIGTERM)
    except (typer.Abort, KeyboardInterrupt):
        _stopped(signal.SIGINT)
    except Exception as error:
        if (usage := _usage_error(error)) is not None:
            usage.show()
            sys.exit(usage.exit_code)
        if not _is_users(error):
            raise
        from flows.console import literal

        # What follows the first line of a replica's error is its traceback.
        text = str(error) if type(error).__name__ != "ReplicaStartError" else str(error).partition("\n")[0]
        errors.print(f"[red]error:[/] {literal(text)}")
        sys.exit(2)


def _stopped(number: signal.Signals) -> NoReturn:
    errors.print(signals.STOPPED[number])
    sys.exit(128 + number)


def _usage_error(error: Exception) -> Any:
    """Return a mistake in the arguments as typer's own click or the click package raise it; None for anything else."""
    return error if hasattr(error, "show") and hasattr(error, "exit_code") else None


def _is_users(error: Exception) -> bool:
    """Say whether an error is one of ours that tells the user what to do."""
    from actors.pool import ReplicaStartError
    from actors.train import TrainingError
    from flows.config import ConfigError
    from flows.summary import RunFailedError
    from pipelines.fingerprint import PlanError
    from pipelines.prompt_table import PromptTableError
    from pipelines.sources import SourceError
    from pipelines.storage import StorageError

    users = (
        ConfigError,
        PlanError,
        SourceError,
        PromptTableError,
        StorageError,
        ReplicaStartError,
        RunFailedError,
        TrainingError,
    )
    return isinstance(error, users)


if __name__ == "__main__":
    main()
