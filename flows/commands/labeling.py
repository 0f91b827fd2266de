"""The commands that label and train (`run`, `plan`, `init`, `retry`, `serve`, `train`, `fetch-model`, ...), options."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actors.released_model.choice import (
    CHECKPOINT,
    CHECKPOINT_FILE,
    MASK_ENCODER,
    TEXT_MODEL,
    VISION_MODEL,
    ReleasedModel,
)
from flows.commands.terminal import (
    JsonOption,
    OutputArgument,
    OverwriteOption,
    checked_run_id,
    command,
    console,
    heard,
    split_names,
    with_options,
)
from flows.process.streams import outlive_terminal
from pipelines.redaction import counted

if TYPE_CHECKING:
    from flows.config import RunConfig

app = typer.Typer()

# The headings of the help.
_WHAT, _ASKED, _MODEL = "What is labeled, and where to", "What is asked", "Model and replicas"

ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="TOML or YAML file with the run's settings.")]
SourceOption = Annotated[
    str | None,
    typer.Option(
        help="Folder, bucket prefix, glob, list file (.txt) or table (.csv, .parquet, .jsonl).", rich_help_panel=_WHAT
    ),
]
OutputOption = Annotated[str | None, typer.Option(help="Folder or bucket prefix for the table.", rich_help_panel=_WHAT)]
CategoriesOption = Annotated[
    list[str] | None,
    typer.Option(
        help='Names to segment, e.g. "car, traffic light". May be given several times.', rich_help_panel=_ASKED
    ),
]
TaskOption = Annotated[
    str | None,
    typer.Option(
        help="ovseg or genseg for the categories, or either with _semantic or _panoptic.", rich_help_panel=_ASKED
    ),
]
PhraseOption = Annotated[
    list[str] | None,
    typer.Option(
        help='One thing described, e.g. "the man on the left". May be given several times.', rich_help_panel=_ASKED
    ),
]
QuestionOption = Annotated[
    list[str] | None,
    typer.Option(
        help='Answered by a mask, e.g. "What could break?". May be given several times.', rich_help_panel=_ASKED
    ),
]
CaptionOption = Annotated[
    bool | None,
    typer.Option(
        "--caption/--no-caption", help="Describe every image, with a mask for each phrase.", rich_help_panel=_ASKED
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        help="Table of regions and sentences for single images (Parquet, CSV or JSONL).", rich_help_panel=_ASKED
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="Folder of a model, as save_pretrained writes it, or an included one: xsam-tiny (names drawings; the "
        "default), xsam-photos (cuts objects out of photographs).",
        rich_help_panel=_MODEL,
    ),
]
ReplicasOption = Annotated[
    int | None, typer.Option(help="Loaded models that label side by side.", rich_help_panel=_MODEL)
]
GpusOption = Annotated[
    float | None, typer.Option(help="GPUs for each replica; a fraction shares one.", rich_help_panel=_MODEL)
]
RunIdOption = Annotated[
    str | None,
    typer.Option(
        help="Name of the run; `run` needs it where an output holds several.",
        callback=checked_run_id,
        rich_help_panel=_WHAT,
    ),
]
LimitOption = Annotated[int | None, typer.Option(help="Label only the first so many images.", rich_help_panel=_WHAT)]
RunnerOption = Annotated[
    str | None,
    typer.Option(
        help="processes (of this machine), ray, in_process, or auto: processes unless Ray is asked for.",
        rich_help_panel=_MODEL,
    ),
]
IncrementalOption = Annotated[
    bool | None,
    typer.Option(
        "--incremental",
        help="Only what earlier runs have not asked: new and changed images, new prompts.",
        rich_help_panel=_WHAT,
    ),
]
SameCollectionOption = Annotated[
    bool | None,
    typer.Option(
        "--same-collection",
        help="The output's runs are of this collection, whose source has moved.",
        rich_help_panel=_WHAT,
    ),
]
PrefectOption = Annotated[
    bool, typer.Option(help="Run as a Prefect flow: on the server of PREFECT_API_URL, else on an embedded one.")
]


@dataclass(frozen=True, slots=True)
class GivenSettings:
    """The settings that a command line gives, and those of its config file.

    Attributes:
        values: the plain values, not validated.
        origin: where they come from, for errors.
    """

    values: Mapping[str, Any]
    origin: str

    def config(self) -> RunConfig:
        """Validate them.

        Raises:
            ConfigError: the message names what is missing or wrong.
        """
        from flows.config import parse_config

        return parse_config(self.values, origin=self.origin)


def run_settings(
    config: ConfigOption = None,
    source: SourceOption = None,
    output: OutputOption = None,
    run_id: RunIdOption = None,
    incremental: IncrementalOption = None,
    limit: LimitOption = None,
    same_collection: SameCollectionOption = None,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check",
            help="First read all that is committed; label again what is damaged.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    categories: CategoriesOption = None,
    task: TaskOption = None,
    phrase: PhraseOption = None,
    question: QuestionOption = None,
    caption: CaptionOption = None,
    prompts: PromptsOption = None,
    model: ModelOption = None,
    replicas: ReplicasOption = None,
    gpus_per_replica: GpusOption = None,
    runner: RunnerOption = None,
) -> GivenSettings:
    """Return the settings that these options and the config file give; options come first."""
    from flows.config import merge, read_values

    given = {
        "source": {"uri": source, "same_collection": same_collection or None},
        "output": {"uri": output, "run_id": run_id, "check": check},
        "model": {"path": model},
        "plan": {"limit": limit},
        "pool": {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner},
        "incremental": incremental or None,
        "categories": split_names(categories),
        "task": task,
        "phrases": phrase or None,
        "questions": question or None,
        "caption": caption,
        "prompts": prompts,
    }
    return GivenSettings(merge(read_values(config) if config else {}, given), str(config or "the command line"))


@command(app, "xsam-label run --source my-photos --output my-labels --model xsam-photos --categories 'cup, dog'")
@with_options(run_settings)
def run(given: GivenSettings, prefect: PrefectOption = True) -> None:
    """Label a collection, or resume it. Exit code 0 only when every listed image is accounted for."""
    from flows.commands.launch import launch

    outlive_terminal()
    raise typer.Exit(0 if launch(given.config(), console, prefect=prefect).has_succeeded else 1)


@command(app, "xsam-label plan --source my-photos --output my-labels --categories 'cup, dog'")
@with_options(run_settings)
def plan(given: GivenSettings, as_json: JsonOption = False) -> None:
    """Show what would run: images, bytes, shards. Writes nothing."""
    from flows.commands.inspect import show_plan

    show_plan(given.config(), console, as_json=as_json)


@command(app, "xsam-label init label.toml --source my-photos --output my-labels --categories 'cup, dog'")
@with_options(run_settings)
def init(
    given: GivenSettings,
    file: Annotated[str, typer.Argument(help="New .toml file.")] = "label.toml",
    overwrite: OverwriteOption = False,
) -> None:
    """Write a config file for `run` with every setting explained; a terminal is asked for what is not given."""
    from flows.commands.console import literal
    from flows.config_file import commented_toml
    from pipelines.storage.targets import open_target, write_target

    target = open_target(file, overwrite=overwrite, suffixes=(".toml",), what="a config is written as .toml")
    asked = GivenSettings(_ask(given.values) if sys.stdin.isatty() else given.values, given.origin)
    write_target(target, commented_toml(asked.config(), file).encode())
    console.print(f"{literal(file)}: `xsam-label plan --config {literal(shlex.quote(file))}` shows what it would label")


def _ask(values: Mapping[str, Any]) -> dict[str, Any]:
    """Ask at the terminal for what a run cannot do without."""
    from flows.config import merge

    def answer(name: str, text: str) -> dict[str, Any]:
        held = values.get(name)
        return {} if held and (isinstance(held, str) or "uri" in held) else {name: {"uri": typer.prompt(text)}}

    asked = answer("source", "Folder, bucket prefix, list or table of the images")
    asked |= answer("output", "Folder or bucket prefix for the table")
    if not any(
        values.get(name) for name in ("categories", "phrases", "questions", "caption", "chat", "prompts", "exemplars")
    ):
        asked["categories"] = split_names([typer.prompt("Names of what to segment, with commas between them")])
    return merge(values, asked)


@command(app, "xsam-label retry my-labels --reason out_of_memory")
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
            heard(console).print(
                f"[yellow]none is better:[/] {counted(bad, 'image')} quarantined again, for the reasons above"
            )
    if not ended:
        console.print("no image is quarantined" + (f" for {', '.join(reason)}" if reason else ""))
    raise typer.Exit(0 if all(ended) else 1)


@command(app, "xsam-label relabel my-labels --where \"status = 'empty'\" --dry-run")
def relabel(
    output: OutputArgument,
    where: Annotated[
        str,
        typer.Option(
            "--where", "--images-where", help="Images that fit this SQL condition, e.g. \"status = 'empty'\"."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML or YAML file with what to ask; else as the last run.")
    ] = None,
    categories: CategoriesOption = None,
    model: ModelOption = None,
    replicas: ReplicasOption = None,
    gpus_per_replica: GpusOption = None,
    runner: RunnerOption = None,
    over_corrections: Annotated[
        bool, typer.Option("--over-corrections", help="The new answers take the place of people's, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show how many images would be labeled.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read what the same command has committed; label what is damaged again.")
    ] = False,
    prefect: PrefectOption = True,
) -> None:
    """Label images of an output again that a condition names, as a run whose answers take the place of earlier ones.

    The same command goes on with a run that was stopped.
    """
    from flows.commands.console import literal
    from flows.commands.inspect import show_plan
    from flows.commands.launch import launch
    from flows.config import read_values
    from flows.run.relabel import relabel_config
    from pipelines.query.named_images import NothingNamedError

    if not dry_run:
        outlive_terminal()
    pool = {"replicas": replicas, "num_gpus_per_replica": gpus_per_replica, "runner": runner}
    overrides = {
        "model": {"path": model},
        "categories": split_names(categories),
        "over_corrections": over_corrections or None,
        "pool": pool,
        "output": {"check": check or None},
    }
    again = relabel_config(output, where, read_values(config) if config else {}, overrides)
    try:
        if dry_run:
            show_plan(again, console)
            return
        summary = launch(again, console, prefect=prefect)
    except NothingNamedError as error:
        console.print(f"{literal(str(error))}: nothing is labeled again")
        return
    raise typer.Exit(0 if summary.has_succeeded else 1)


@command(app, "xsam-label serve -c label.toml --cron '0 2 * * *' --timezone Europe/Berlin")
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


@command(app, "xsam-label train -c examples/train_tiny.toml --max-minutes 60")
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


_FROM, _TRIED = "Where it comes from: repositories of the Hub (owner/name@revision) or folders", "How it is tried"


@command(app, "xsam-label fetch-model --output models/x-sam", "fetch-model")
def fetch_model(
    output: Annotated[Path, typer.Option(help="New folder for the model.")],
    checkpoint: Annotated[
        str, typer.Option(help="The weights; a file of weights, too.", rich_help_panel=_FROM)
    ] = CHECKPOINT,
    checkpoint_file: Annotated[
        str, typer.Option(help="The file of weights in it.", rich_help_panel=_FROM)
    ] = CHECKPOINT_FILE,
    text_model: Annotated[
        str, typer.Option(help="Language model, for configuration and tokenizer.", rich_help_panel=_FROM)
    ] = TEXT_MODEL,
    vision_model: Annotated[
        str, typer.Option(help="SigLIP2, for its configuration.", rich_help_panel=_FROM)
    ] = VISION_MODEL,
    mask_encoder: Annotated[
        str, typer.Option(help="SAM, for its configuration.", rich_help_panel=_FROM)
    ] = MASK_ENCODER,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of XSamConfig, for a model of other sizes.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Type of the weights: auto (the checkpoint's), bfloat16, float16, float32.")
    ] = "auto",
    picture: Annotated[
        Path, typer.Option(help="Picture that is labeled with the model.", rich_help_panel=_TRIED)
    ] = Path("examples/photos/coffee.jpg"),
    categories: Annotated[
        list[str] | None, typer.Option(help="Names to find in it: cup, spoon.", rich_help_panel=_TRIED)
    ] = None,
    no_picture: Annotated[
        bool, typer.Option("--no-picture", help="Convert only: this machine cannot run it.", rich_help_panel=_TRIED)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be fetched, and whether there is room.")
    ] = False,
) -> None:
    """Fetch the released weights, make a model folder of them, and label a picture with it: docs/checkpoints.md.

    What is interrupted goes on with the same command. Tokens are read from HF_TOKEN in the environment alone.
    """
    from actors.released_model.fetch import EXAMPLE
    from actors.released_model.fetch import fetch_model as fetch
    from flows.commands.console import literal

    if not dry_run:
        outlive_terminal()
    wanted = ReleasedModel(
        output=output,
        checkpoint=checkpoint,
        checkpoint_file=checkpoint_file,
        text_model=text_model,
        vision_model=vision_model,
        mask_encoder=mask_encoder,
        config=config,
        dtype=dtype,
        picture=None if no_picture else picture,
        categories=tuple(split_names(categories) or ("cup", "spoon")),
    )
    with_bar = sys.stderr.isatty() and not console.quiet
    fetch(wanted, lambda text: console.print(literal(text)), with_bar=with_bar, is_dry_run=dry_run)
    if dry_run:
        return
    if not no_picture:
        console.print(f"look at {literal(str(output / EXAMPLE))}")
    model = literal(shlex.quote(str(output)))
    console.print(f"next: xsam-label run --source my-photos --output my-labels --model {model} --categories 'cup, dog'")


@command(app, "xsam-label demo --output demo-out")
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
