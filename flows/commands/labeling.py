"""The commands that label and train (`run`, `plan`, `retry`, `serve`, `train`, `demo`) and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.terminal import JsonOption, OutputArgument, checked_run_id, console, split_names
from flows.process.streams import outlive_terminal
from pipelines.redaction import counted

app = typer.Typer()

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML or YAML file with the run's settings.")]
SourceOption = Annotated[
    str | None, typer.Option(help="Folder, bucket prefix, glob, list file (.txt) or table (.csv, .parquet, .jsonl).")
]
OutputOption = Annotated[str | None, typer.Option(help="Folder or bucket prefix for the table.")]
CategoriesOption = Annotated[
    list[str] | None, typer.Option(help='Names to segment, e.g. "car, traffic light". May be given several times.')
]
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
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model, as save_pretrained writes it, or an included one: xsam-tiny (names drawings; the "
        "default), xsam-photos (cuts objects out of photographs)."
    ),
]
ReplicasOption = Annotated[int | None, typer.Option(help="Loaded models that label side by side.")]
GpusOption = Annotated[float | None, typer.Option(help="GPUs for each replica; a fraction shares one.")]
RunIdOption = Annotated[
    str | None,
    typer.Option(help="Name of the run; `run` needs it where an output holds several.", callback=checked_run_id),
]
LimitOption = Annotated[int | None, typer.Option(help="Label only the first so many images.")]
RunnerOption = Annotated[
    str | None,
    typer.Option(help="processes (of this machine), ray, in_process, or auto: processes unless Ray is asked for."),
]
IncrementalOption = Annotated[
    bool | None,
    typer.Option("--incremental", help="Only what earlier runs have not asked: new and changed images, new prompts."),
]
SameCollectionOption = Annotated[
    bool | None,
    typer.Option("--same-collection", help="The output's runs are of this collection, whose source has moved."),
]
PrefectOption = Annotated[
    bool, typer.Option(help="Run as a Prefect flow: on the server of PREFECT_API_URL, else on an embedded one.")
]


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
    check: Annotated[
        bool | None, typer.Option("--check", help="First read all that is committed; label again what is damaged.")
    ] = None,
    same_collection: SameCollectionOption = None,
    runner: RunnerOption = None,
    prefect: PrefectOption = True,
) -> None:
    """Label a collection, or resume it. Exit code 0 only when every listed image is accounted for."""
    from flows.commands.launch import launch

    outlive_terminal()
    asked = _asked(categories, task, phrase, question, caption, prompts)
    pool = {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner}
    overrides = (
        _overrides(source, output, model, limit, run_id, same_collection)
        | asked
        | {"pool": pool, "incremental": incremental or None}
    )
    overrides["output"]["check"] = check
    raise typer.Exit(0 if launch(_config(config, overrides), console, prefect=prefect).has_succeeded else 1)


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
    same_collection: SameCollectionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would run: images, bytes, shards. Writes nothing."""
    from flows.commands.inspect import show_plan

    asked = _asked(categories, task, phrase, question, caption, prompts)
    overrides = _overrides(source, output, model, limit, run_id, same_collection) | asked
    overrides |= {"incremental": incremental or None}
    show_plan(_config(config, overrides), console, as_json=as_json)


@app.command()
def retry(
    output: OutputArgument,
    reason: Annotated[
        list[str] | None, typer.Option(help='Only images quarantined for it, e.g. "out_of_memory". Repeatable.')
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(help="Only images of this run; by default those of all the output's.", callback=checked_run_id),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML or YAML file with what is to differ from the run's.")
    ] = None,
    replicas: ReplicasOption = None,
    gpus_per_replica: GpusOption = None,
    runner: RunnerOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read what earlier retries have committed, and label again what is damaged.")
    ] = False,
    prefect: PrefectOption = True,
) -> None:
    """Label quarantined images again, those of each run as a run of their own whose rows take the place of theirs."""
    from flows.commands.launch import launch
    from flows.config import merge, read_values
    from flows.run.retry import runs_to_retry

    outlive_terminal()
    pool = {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner}
    overrides = merge(read_values(config) if config else {}, {"pool": pool, "output": {"check": check or None}})
    again = runs_to_retry(output, run_id, reason or [], overrides)
    ended = list[bool]()
    for one in again:
        summary = launch(one, console, prefect=prefect)
        ended.append(summary.has_succeeded)
        if summary.ok and (bad := summary.ledger["quarantined"]) and bad == summary.ledger["listed"]:
            console.print(
                f"[yellow]none is better:[/] {counted(bad, 'image')} quarantined again, for the reasons above"
            )
    if not ended:
        console.print("no image is quarantined" + (f" for {', '.join(reason)}" if reason else ""))
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
    from flows.commands.serve import Timetable
    from flows.commands.serve import serve as serve_schedule
    from flows.config import load_config

    outlive_terminal()
    timetable = Timetable(cron=cron, interval_s=interval, timezone=timezone)
    serve_schedule(load_config(config), timetable, name or config.stem, console)


@app.command()
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="TOML file: examples/train_tiny.toml is one.")],
    output: Annotated[str | None, typer.Option(help="Folder of the run, instead of the file's.")] = None,
    max_minutes: Annotated[float | None, typer.Option(help="Save and stop after so long.")] = None,
    processes: Annotated[int, typer.Option(help="Training processes on this machine.")] = 1,
) -> None:
    """Train a model, or go on. Exit code 0 when it is trained, 3 when it stopped before its end."""
    from actors.training.train import train_model

    outlive_terminal()
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
    from flows.commands.demo import run_demo

    outlive_terminal()
    raise typer.Exit(0 if run_demo(scenes, photos, prompts, output, console, prefect=prefect) else 1)


def _overrides(
    source: str | None,
    output: str | None,
    model: str | None,
    limit: int | None,
    run_id: str | None,
    same_collection: bool | None,
) -> dict[str, Any]:
    return {
        "source": {"uri": source, "same_collection": same_collection or None},
        "output": {"uri": output, "run_id": run_id},
        "model": {"path": model},
        "plan": {"limit": limit},
    }


def _asked(
    categories: list[str] | None,
    task: str | None,
    phrases: list[str] | None,
    questions: list[str] | None,
    caption: bool | None,
    prompts: str | None,
) -> dict[str, Any]:
    return {
        "categories": split_names(categories),
        "task": task,
        "phrases": phrases or None,
        "questions": questions or None,
        "caption": caption,
        "prompts": prompts,
    }


def _config(path: Path | None, overrides: dict[str, Any]) -> Any:
    from flows.config import merge, parse_config, read_values

    values = read_values(path) if path else {}
    return parse_config(merge(values, overrides), origin=str(path) if path else "the command line")
