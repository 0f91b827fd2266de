"""The commands of a life: what a person, a scheduler or a script starts, each as a process with an exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ReplicaStartError
from actors.predictor.labeler import RunLabeler
from flows.commands import launch
from flows.commands.inspect import show_compact, show_vacuum
from flows.config import ConfigError, RunConfig
from flows.process import signals
from flows.process.signals import GRACE_S, Terminated
from flows.run.retry import runs_to_retry
from pipelines.errors import PlanError, SourceError, StorageError
from pipelines.labeling.shard import LabelJob
from pipelines.types import Prompt
from tests.simulation.network import URI
from tests.simulation.pool import SimulatedPool
from tests.simulation.world import Death, Process, World

REFUSALS = (ConfigError, PlanError, SourceError, StorageError, ReplicaStartError)


class FakePredictor:
    """What a labeler asks of a predictor beside predictions."""

    def describe(self) -> dict[str, str]:
        return {"device": "simulated", "weights_sha256": "0" * 64}


class _Console:
    """A screen that nobody looks at."""

    is_terminal = False

    def print(self, *_: Any, **__: Any) -> None:
        """Show nothing."""

    @contextmanager
    def status(self, _text: str) -> Any:
        yield self

    def update(self, _text: str) -> None:
        """Show nothing."""


CONSOLE: Any = _Console()


@dataclass
class Ended:
    """How a command ended: its exit code, None for death; why, if it was not 0; and whether it was asked to stop."""

    name: str
    code: int | None = None
    why: str = ""


def open_run_runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> Any:
    """Return the runner of a run, whose labeler is the product's, on a predictor that knows the answers."""
    job = LabelJob(run_id=run_id, prompts=prompts, config=config.label)

    def labeler() -> RunLabeler:
        return RunLabeler(FakePredictor(), job, config.output.uri)  # type: ignore[arg-type]

    runner = InProcessRunner if config.pool.runner == "in_process" else SimulatedPool
    return runner(labeler, config.pool)


def run(config: RunConfig) -> int:
    """`xsam-label run`, without Prefect."""
    return 0 if launch.launch(config, CONSOLE, prefect=False).ok else 1


def retry(overrides: dict[str, Any]) -> int:
    """`xsam-label retry`."""
    again = runs_to_retry(URI, None, [], overrides)
    ended = [launch.launch(one, CONSOLE, prefect=False).ok for one in again]
    return 0 if all(ended) else 1


def vacuum(older_than_s: float) -> int:
    """`xsam-label vacuum --older-than`."""
    return 0 if show_vacuum(URI, None, CONSOLE, older_than_s=older_than_s, dry_run=False) else 1


def compact() -> int:
    """`xsam-label compact`."""
    show_compact(URI, CONSOLE)
    return 0


def start(world: World, name: str, command: Callable[[], int], order: Any = None) -> tuple[Process, Ended]:
    """Start a command in a process of its own."""
    # Ids come again from life to life, so that what is made of them can be kept.
    process, ended = world.process(name, f"{sum(bool(one.driver_id) for one in world.processes):08x}"), Ended(name)
    process.on_signal = signals._raise_terminated
    process.order, process.is_earlier = order, bool(order and order.is_earlier)

    def main() -> None:
        world.note("starts")
        try:
            ended.code = command()
        except Death:
            raise
        except Terminated:
            ended.code = 128 + signal.SIGTERM
        except REFUSALS as error:
            ended.code, ended.why = 2, f"{type(error).__name__}: {error}"
        except Exception as error:
            ended.code, ended.why = 99, f"{type(error).__name__}: {error}"
            world.errors.append(_trace_of(name, error))
        world.note(f"ends with {ended.code} {ended.why[:300]}")
        world.at(0.0, process.end)

    process.spawn(main)
    return process, ended


def terminate(process: Process, grace_s: float) -> None:
    """Send SIGTERM; a process that has not ended in time is ended, as `signals.handled` does."""
    world = process.world
    if not process.is_alive:
        return
    world.trace.append((world.now, process.name, "gets SIGTERM"))
    world.at(GRACE_S + grace_s, process.end)
    process.signal(signal.SIGTERM)


def _trace_of(name: str, error: BaseException) -> str:
    import traceback

    last = traceback.format_exception(error)[-6:]
    return f"{name} ended in a traceback: {''.join(last)}"


def reading(check: Callable[[], None]) -> int:
    """A reader."""
    check()
    return 0
