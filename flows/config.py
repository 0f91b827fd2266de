"""The configuration of a run (RunConfig), composed of each layer's own config, and how it is read from TOML or YAML."""

from __future__ import annotations

import tomllib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from actors.pool.config import PoolConfig
from actors.predictor.config import PredictorConfig
from flows.prompts import caption_prompt, check_names, check_stuff, named_prompts
from pipelines.errors import UserError
from pipelines.labeling.shard import LabelConfig
from pipelines.labeling.tiles.config import TileConfig
from pipelines.planning.draft import PlanConfig
from pipelines.planning.exemplars.config import (
    ExemplarConfig,
    FrozenExemplar,
    exemplar_prompts,
    exemplars_sha256,
    selections,
)
from pipelines.planning.fingerprint import RELABEL
from pipelines.rates.changes import RateLimits
from pipelines.redaction import check_storage_options, quoted_names, secret_in
from pipelines.settings import Settings
from pipelines.storage.client_limits import REQUEST_TIMEOUT_S, check_request_timeout
from pipelines.storage.filesystems import absolute_uri, protocol_of
from pipelines.storage.web import HttpConfig
from pipelines.types import CategoryTask, Prompt, Reason


class ConfigError(UserError, ValueError):
    """A config cannot be used; the message names the field, its value and what is allowed."""


def _check_uri(name: str, uri: str) -> None:
    if secret := secret_in(uri):
        raise ValueError(
            f"{name} carries {secret}, which would end up in plans, logs and flow-run parameters; let the machine have "
            "the credentials, as environment variables, a profile or a role"
        )


def check_run_id(name: str, run_id: str | None) -> None:
    """Check that a run id can be a folder name on every store.

    Raises:
        ValueError: it cannot; the message names the setting and what is allowed.
    """
    if run_id is None:
        return
    if not run_id.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"{name} {run_id!r} may hold letters, digits, '-' and '_' only")
    if run_id.startswith("_"):
        raise ValueError(f"{name} {run_id!r} begins with '_', and readers of tables skip such folders")
    if len(run_id.encode()) > _MAX_RUN_ID:
        raise ValueError(f"{name} has {len(run_id.encode())} bytes; allowed: {_MAX_RUN_ID}")


def check_reasons(name: str, reasons: Iterable[str]) -> None:
    """Check that these are reasons of quarantine.

    Raises:
        ValueError: one is not; the message names the setting and what is allowed.
    """
    known = [reason.value for reason in Reason]
    if unknown := [reason for reason in reasons if reason not in known]:
        raise ValueError(f"{name}: no such reason: {quoted_names(unknown)}; allowed: {', '.join(known)}")


# File names may have 255 bytes, and a retry appends "-retry-N" to the id.
_MAX_RUN_ID = 200


class SourceConfig(Settings):
    """Where the images are."""

    uri: str
    """A folder or bucket prefix, a pattern, a list file (.txt, .lst), a table (.csv, .tsv, .parquet, .jsonl) of URIs or
    of images, a COCO file (.json), tar files, or a folder that ``datasets`` saved: docs/sources.md.
    """
    image_id_column: str | None = None
    """Columns of a table source; found by their usual names when left out. Of a tar the first may be ``__key__``,
    ``__path__`` or a field of the samples' .json, of images in tables ``__row__``.
    """
    uri_column: str | None = None
    """Columns of a table source; found by their usual names when left out. Of a tar the first may be ``__key__``,
    ``__path__`` or a field of the samples' .json, of images in tables ``__row__``.
    """
    image_column: str | None = None
    """The column of a table that holds images as bytes; found when left out."""
    image_root: str | None = None
    """Folder of the images that a list, table or COCO file names; its own folder when left out."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Fsspec options without credentials, e.g. endpoint_url."""
    request_timeout_s: float = REQUEST_TIMEOUT_S
    """Seconds for one request to an object store, as for the output; an image's own transfer is under
    label.fetch_timeout_s too.
    """
    allow_http: bool = False
    """Fetch images that a list or table names as http:// or https://."""
    http: HttpConfig = Field(default_factory=HttpConfig)
    """How web servers are asked for them: headers, tries."""
    same_collection: bool = False
    """The output's earlier runs are of this collection though their source is written otherwise: it has moved, or its
    ids tell its images apart wherever they are.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.uri:
            raise ValueError("source.uri is empty; give a folder, bucket prefix, glob, list file or table")
        if self.uri_column and self.image_column:
            raise ValueError("source: uri_column and image_column are both given; a table holds one or the other")
        _check_uri("source.uri", self.uri)
        _check_uri("source.image_root", self.image_root or "")
        check_storage_options(self.storage_options)
        check_request_timeout("source.request_timeout_s", self.request_timeout_s)
        return self

    @property
    def client_options(self) -> dict[str, Any]:
        """The storage options for the source's files, with the request timeout, and how web servers are asked."""
        web = {} if self.http == HttpConfig() else {"http": self.http.model_dump(mode="json")}
        return {**self.storage_options, **web, "request_timeout_s": self.request_timeout_s}

    @property
    def listing_options(self) -> dict[str, Any]:
        """How the source is listed: the arguments of list_batches beside its URI."""
        names = ("image_id_column", "uri_column", "image_column", "image_root")
        return {"storage_options": self.client_options, **{name: getattr(self, name) for name in names}}


class OutputConfig(Settings):
    """Where the table is written."""

    uri: str
    """Folder or bucket prefix; ``annotations/``, ``images/`` and ``_runs/`` lie directly under it."""
    run_id: str | None = None
    """Name of the run; by default the run that the output already holds, or one named after the fingerprint."""
    storage_options: dict[str, Any] = Field(default_factory=dict)
    """Fsspec options without credentials, e.g. endpoint_url."""
    request_timeout_s: float = REQUEST_TIMEOUT_S
    """Seconds for one request to an object store, whatever is tried again within it: one object read, written or
    removed, or one page of a listing.
    """
    single_driver: bool = False
    """Promise that only one driver works on the run, for a store without conditional writes."""
    check: bool = False
    """First read all that is committed, and label again what is not what its commit says; by default only sizes are
    compared, and nothing is read of a run whose summary tells that it is whole.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.uri:
            raise ValueError("output.uri is empty; give a folder or bucket prefix")
        check_run_id("output.run_id", self.run_id)
        _check_uri("output.uri", self.uri)
        check_storage_options(self.storage_options)
        check_request_timeout("output.request_timeout_s", self.request_timeout_s)
        return self

    @property
    def client_options(self) -> dict[str, Any]:
        """The storage options for opening the output, with the request timeout."""
        return {**self.storage_options, "request_timeout_s": self.request_timeout_s}


class WaveConfig(Settings):
    """How shards are grouped into Prefect task runs, which watch them and have failed ones tried again."""

    max_waves: int = 200
    """Task runs per flow run at most: servers and the UI suffer from thousands."""
    retries: int = 1
    """Times a wave with failed shards is tried again; only its uncommitted shards are labeled then."""
    retry_delay_s: float = 5.0
    """Seconds before that."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_waves < 1 or self.retries < 0 or self.retry_delay_s < 0:
            raise ValueError("waves: max_waves must be at least 1, retries and retry_delay_s at least 0")
        return self


class LimitsConfig(Settings):
    """When a run is not worth going on with."""

    max_quarantined_share: float = 0.2
    """Share of the images, in [0, 1], that may be quarantined; 1 for any."""
    after_images: int = 500
    """Images that an invocation labels or quarantines before the share counts."""
    max_rejected_prompts_share: float = 0.5
    """Share of the prompt table's rows, in [0, 1], that may be asked of no image, because they name none that is listed
    or are no valid prompts; beyond it nothing is planned. 1 for any.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("max_quarantined_share", "max_rejected_prompts_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"limits: {name} is {share}; allowed: 0 to 1")
        if self.after_images < 1:
            raise ValueError(f"limits: after_images is {self.after_images}; allowed: 1 or more")
        return self


class CanaryConfig(RateLimits):
    """A first part of a run, spread over the collection, by which it is seen whether the rest is worth labeling."""

    images: int = 0
    """Images that are labeled first, in some 32 places of the collection; 0 for none. Of a collection of fewer than
    twice as many there is no such part.
    """
    then: Literal["stop", "wait", "warn"] = "stop"
    """What happens if they are beyond a limit, or unlike those of the last run: "stop" ends the run (exit code 1), and
    ``xsam-label approve`` lets the same command go on; "wait" waits for that, with the replicas; "warn" goes on.
    """
    compare: bool = True
    """Hold the first part, and every run at its end, against the last run of the output."""

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if self.images and not 32 <= self.images <= 100_000:
            raise ValueError(f"canary: images is {self.images}; allowed: 0, or 32 to 100,000")
        return self


class RetryConfig(Settings):
    """Which images of an earlier run to label again, instead of those of the source."""

    run_id: str
    """The run, in the same output."""
    reasons: tuple[str, ...] = ()
    """Why they are quarantined; any by default."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_run_id("retry.run_id", self.run_id)
        check_reasons("retry.reasons", self.reasons)
        return self


class RelabelConfig(Settings):
    """Which images of the output to label again, instead of those of the source."""

    where: str = Field(default="", exclude=True, repr=False)
    """SQL condition on images. It is never kept, since it may name an image or a person."""
    where_sha256: str
    """Its SHA-256, by which the same command goes on with its run."""
    condition: str = ""
    """The condition without the values that it names, for people."""


class RunConfig(Settings):
    """One labeling run: what to label, with which prompts and model, to where, on how many replicas."""

    source: SourceConfig
    """Where the images are; in a file, a plain string is its uri."""
    output: OutputConfig
    """Where the table goes; in a file, a plain string is its uri."""
    model: PredictorConfig = Field(default_factory=PredictorConfig)
    """The model that every replica loads; in a file, a plain string is its path. By default xsam-tiny, which comes
    along.
    """
    categories: tuple[str, ...] = ()
    """Names to segment in every image, e.g. ["forklift", "pallet"]."""
    task: CategoryTask = "ovseg"
    """"ovseg" (open vocabulary) or "genseg" (generic) for instances of the categories; with "_semantic" or "_panoptic"
    behind it for one label of every pixel.
    """
    stuff: tuple[str, ...] = ()
    """Those categories that are not countable, e.g. ["sky"]: a panoptic task makes one segment of each."""
    phrases: tuple[str, ...] = ()
    """Descriptions of one thing each, found in every image (refseg), e.g. ["the man on the left"]."""
    questions: tuple[str, ...] = ()
    """Sentences that take thinking to answer with a mask (reaseg), e.g. ["What could break?"]."""
    explain: bool = False
    """Have the questions answered in words too."""
    caption: bool = False
    """Describe every image in words, with a mask for each phrase (gcgseg)."""
    chat: tuple[str, ...] = ()
    """Questions asked of every image and answered in words alone."""
    prompts: str | None = None
    """Table of regions and sentences for single images, joined to them, and of exemplars."""
    exemplars: tuple[ExemplarConfig, ...] = ()
    """Regions of some images that show what to find in others, asked of every image or of a selection (vgdseg)."""
    exemplars_frozen: tuple[FrozenExemplar, ...] = ()
    """These and those of the table, as the run's plan has them; a run sets them itself."""
    incremental: bool = False
    """Label only what the output's earlier runs do not cover: new or changed images, new prompts. Runs that are not
    finished are finished first.
    """
    over_corrections: bool = False
    """Let the run's answers replace those that people have given by ``import``; otherwise these stay current."""
    retry: RetryConfig | None = None
    """Label quarantined images of an earlier run again; the source is not listed then."""
    relabel: RelabelConfig | None = None
    """Label images of the output again that a condition names; the source is not listed then."""
    report: bool = False
    """Write an HTML page that shows the output beside the summary, once something was labeled."""
    plan: PlanConfig = Field(default_factory=PlanConfig)
    """How the collection is cut into shards."""
    label: LabelConfig = Field(default_factory=LabelConfig)
    """Batches, loading ahead, time and size limits of an image."""
    pool: PoolConfig = Field(default_factory=PoolConfig)
    """How many replicas there are, and what each is given."""
    waves: WaveConfig = Field(default_factory=WaveConfig)
    """How many Prefect task runs the shards are grouped into, and how often one is tried again."""
    tiles: TileConfig | None = None
    """Ask pictures larger than a tile in overlapping tiles and as a whole, e.g. { size = 1024, overlap = 128 }: pixels
    of a tile's sides, at least the model's canvas, and those that neighbors share. By default all pictures are asked as
    a whole.
    """
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    """When to stop, since too many images cannot be labeled."""
    canary: CanaryConfig = Field(default_factory=CanaryConfig)
    """Which images are labeled first, and what they have to be like for the rest to be labeled."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        asked = self.categories or self.phrases or self.questions or self.caption or self.chat
        if not (asked or self.prompts or self.exemplars):
            raise ValueError("nothing to ask: give categories, phrases, questions, caption, chat, exemplars or prompts")
        _check_uri("prompts", self.prompts or "")
        for what in ("categories", "phrases", "questions", "chat"):
            check_names(what, getattr(self, what))
        check_stuff(self.task, self.categories, self.stuff)
        selections(self.exemplars)
        if self.explain and not self.questions:
            raise ValueError("explain is set, but there are no questions (rows of the prompts table say it themselves)")
        if self.pool.runner != "in_process" and "memory" in (
            protocol_of(self.output.uri),
            protocol_of(self.source.uri),
        ):
            raise ValueError('memory:// lives in one process: use it with pool.runner = "in_process"')
        return self

    def common_prompts(self) -> tuple[Prompt, ...]:
        """Return the prompts asked of every image, task by task, each in the order given.

        Those of exemplars are there once they are frozen; some may be asked of a selection of the images only.
        """
        return (
            *named_prompts(self.task, self.categories, stuff=self.stuff, keep_spaces=self._asks_as_reference),
            *named_prompts("refseg", self.phrases),
            *named_prompts("reaseg", self.questions, explain=self.explain),
            *([caption_prompt()] if self.caption else []),
            *named_prompts("chat", self.chat),
            *exemplar_prompts(self.exemplars_frozen),
        )

    @property
    def _asks_as_reference(self) -> bool:
        return self.model.category_text == "reference"

    def fingerprint(self, *, model_sha256: str, prompts_sha256: str | None) -> dict[str, Any]:
        """Return every setting that can change a row, by name.

        Settings for dividing the work (shards, batches, replicas, threads) are left out on purpose: they may change
        between a run and its resumption. Masks then agree up to rounding between batch sizes, devices and numbers of
        torch threads.
        """
        retry = {"retry": {"run_id": self.retry.run_id, "reasons": sorted(self.retry.reasons)}} if self.retry else {}
        relabel = {RELABEL: {"where_sha256": self.relabel.where_sha256}} if self.relabel else {}
        return {
            **retry,
            **relabel,
            **({"over_corrections": True} if self.over_corrections else {}),
            "source": absolute_uri(self.source.uri),
            "source.image_id_column": self.source.image_id_column,
            "source.uri_column": self.source.uri_column,
            # Left out unless set: plans of versions that did not have these settings keep their fingerprint.
            **({"source.image_column": self.source.image_column} if self.source.image_column else {}),
            **({"source.image_root": absolute_uri(self.source.image_root)} if self.source.image_root else {}),
            "limit": self.plan.limit,
            "task": self.task,
            "categories": [name if self._asks_as_reference else name.strip() for name in self.categories],
            **({"model.category_text": self.model.category_text} if self._asks_as_reference else {}),
            "stuff": sorted(name.strip() for name in self.stuff),
            "phrases": [phrase.strip() for phrase in self.phrases],
            "questions": [question.strip() for question in self.questions],
            "explain": self.explain,
            "caption": self.caption,
            "chat": [question.strip() for question in self.chat],
            "prompts": prompts_sha256,
            **({"exemplars": exemplars_sha256(self.exemplars_frozen)} if self.exemplars_frozen else {}),
            "model": model_sha256,
            "model.dtype": self.model.dtype,
            "model.min_score": self.model.min_score,
            "model.max_masks_per_image": self.model.max_masks_per_image,
            "model.region_sampling": self.model.region_sampling,
            "model.max_new_tokens": self.model.max_new_tokens,
            "decode.max_image_bytes": self.label.decode.max_image_bytes,
            "decode.max_image_pixels": self.label.decode.max_image_pixels,
            **({"decode.stretch": self.label.decode.stretch} if self.label.decode.stretch != "percentile" else {}),
            **({f"tiles.{name}": value for name, value in self.tiles} if self.tiles else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain JSON values, as the plan stores it; tiles are left out unless set."""
        return self.model_dump(mode="json", exclude={"tiles"} if self.tiles is None else None)


_SHORTHANDS = {"source": "uri", "output": "uri", "model": "path"}


def parse_config(values: Mapping[str, Any], *, origin: str = "config") -> RunConfig:
    """Validate plain values and build the config.

    Args:
        values: as read from a file; ``source``, ``output`` and ``model`` may be plain strings.
        origin: where the values come from, for errors, e.g. the file's name.

    Raises:
        ConfigError: unknown keys, missing fields, wrong types or values; the message lists all of them with their
            places.
    """
    expanded = {
        name: {_SHORTHANDS[name]: value} if name in _SHORTHANDS and isinstance(value, str) else value
        for name, value in values.items()
    }
    try:
        return RunConfig.model_validate(expanded)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors(include_url=False)]
        if "stages" in values:
            lines = ["this looks like a config of `train`, which has stages; one of `run` has source and output"]
        # Without its cause, which shows the values given: even a mistaken one may be a secret.
        raise ConfigError(f"{origin} cannot be used:\n" + "\n".join(f"  {line}" for line in lines)) from None


def load_config(path: str | Path) -> RunConfig:
    """Read a config from a .toml, .yaml or .yml file.

    Raises:
        ConfigError: the file is missing, cannot be parsed, or is not a valid config.
    """
    return parse_config(read_values(path), origin=str(path))


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that is given twice, as TOML does; PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.update([key.value] if isinstance(key.value, str) else ())
        return super().construct_mapping(node, deep)


def read_values(path: str | Path) -> dict[str, Any]:
    """Read the plain values of a config file, without validating them.

    Raises:
        ConfigError: the file is missing or cannot be parsed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark in front
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    try:
        if path.suffix == ".toml":
            values: Any = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            values = yaml.load(text, _UniqueKeys)
        else:
            raise ConfigError(f"{path}: a config is a .toml, .yaml or .yml file")
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be parsed: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a table of settings, found {type(values).__name__}")
    return values


def merge(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Apply overrides to plain values, table by table; a None override leaves the value as it is."""
    merged = dict(values)
    for name, value in overrides.items():
        if isinstance(value, Mapping):
            below = {} if merged.get(name) is None else merged[name]
            below = {_SHORTHANDS[name]: below} if name in _SHORTHANDS and isinstance(below, str) else below
            # A value that should be a table but is not is kept, so that parse_config reports it by name.
            merged[name] = merge(below, value) if isinstance(below, Mapping) else below
        elif value is not None:
            merged[name] = value
    # A table that is given empty is kept, so that parse_config tells what it lacks.
    return {name: value for name, value in merged.items() if value != {} or name in values}


def _explain(item: Mapping[str, Any]) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "config"
    if item["type"] == "extra_forbidden":
        return f"{place}: unknown key; see docs/configuration.md for the keys that exist"
    if item["type"] == "missing":
        return f"{place}: missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    return message if item["type"] == "value_error" and place == "config" else f"{place}: {message}"
