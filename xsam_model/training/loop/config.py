"""TrainingConfig describes a whole training run, and is read from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from xsam_model.training.loop.stages import StageConfig, read_stage
from xsam_model.training.samples.sources import SampleSource


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """A data set.

    Attributes:
        factory: function that opens it, "package.module:name"; returns a `SampleSource`.
        arguments: keyword arguments of the factory.
    """

    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> SampleSource:
        """Call the factory.

        Raises:
            ValueError: if there is no such factory.
        """
        module, _, name = self.factory.partition(":")
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"source factory {self.factory!r} cannot be loaded: {error}") from error
        return factory(**self.arguments)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """A training run: a sequence of stages, each starting from the model that the previous one saved.

    Attributes:
        output: folder for checkpoints, metrics and models.
        model: folder of the model to start from, as `save_pretrained` writes it; "tiny" or "tiny-256" for a small one
            with random weights, see `tiny.xsam_tiny_config`.
        sources: data sets.
        stages: stages in order.
        seed: seed of everything random.
        device: "cpu", or "auto" for the device that accelerate finds.
        precision: "float32", or "bfloat16" for autocast.
        gradient_checkpointing: recompute activations instead of storing them.
        threads: CPU threads of each process; 0 for torch's default.
        workers: data loading processes for each training process; 0 for none.
        resampling_threshold: threshold of `sources.balanced_sizes`.
        checkpoint_every_steps, checkpoint_every_minutes: how often to save; 0 for never. A run always saves when it
            stops.
        keep_checkpoints: number of checkpoints to keep, the newest ones.
        log_every_steps: how often to write metrics, in updates.
        max_minutes: time after which the run saves and stops, to be resumed by the same command; 0 for no limit.
    """

    output: str
    model: str = "tiny"
    sources: tuple[SourceConfig, ...] = ()
    stages: tuple[StageConfig, ...] = ()
    seed: int = 0
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    threads: int = 0
    workers: int = 0
    resampling_threshold: float = 0.1
    checkpoint_every_steps: int = 0
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    log_every_steps: int = 20
    max_minutes: float = 0.0

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: says which setting is wrong and what is allowed.
        """
        if not self.sources or not self.stages:
            raise ValueError("a run needs at least one of [[sources]] and one of [[stages]]")
        if self.device not in ("auto", "cpu"):
            raise ValueError(f"device must be auto or cpu, got {self.device!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be float32 or bfloat16, got {self.precision!r}")
        for name in ("keep_checkpoints", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")

    def stage_folder(self, number: int) -> Path:
        """Return the folder of a stage, counted from 0; it contains `model` once the stage is complete."""
        return Path(self.output) / f"{number + 1}-{self.stages[number].kind}"

    @property
    def is_complete(self) -> bool:
        """Whether the model of the last stage exists."""
        return (self.stage_folder(len(self.stages) - 1) / "model").is_dir()


def read_config(path: Path, **overrides: Any) -> TrainingConfig:
    """Read a run from a TOML file; `overrides` that are not None replace its values.

    Raises:
        ValueError: if the file is not TOML, or a setting is missing, unknown or out of range.
        OSError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark in front
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    try:
        values = tomllib.loads(text)
        if "source" in values and not {"sources", "stages"} & values.keys():
            raise ValueError("this looks like a config of `run`, which labels; one of `train` has sources and stages")
        values |= {name: value for name, value in overrides.items() if value is not None}
        known = {one.name for one in fields(TrainingConfig)}
        if strange := sorted(set(values) - known):
            raise ValueError(f"unknown settings {', '.join(strange)}; known: {', '.join(sorted(known))}")
        sources = tuple(SourceConfig(**one) for one in values.pop("sources", ()))
        stages = tuple(read_stage(one) for one in values.pop("stages", ()))
        return TrainingConfig(**values, sources=sources, stages=stages)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
