"""A process that dies at a given side effect of its run: right before it, or right after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from typing import Any

from tests.reliability.small_run import SmallRun, run
from tests.reliability.watched_storage import watched

EXIT_CODE = 70


class Death(BaseException):
    """The end of a process that is only played in this one."""


class Mortal:
    """A process that may have died: then it touches the output no more."""

    _dead = False

    def _check(self) -> None:
        if self._dead:
            raise Death

    def _die(self) -> None:
        self._dead = True
        raise Death


@dataclass
class Dying(Mortal):
    """A Watcher that numbers side effects, and ends the process at one of them.

    Attributes:
        at: number of the effect, from 0; None to see all of them.
        after: whether the effect has happened when the process ends.
        really: end this process; otherwise raise Death, now and whenever the dead process touches the output again.
        seen: effects so far.
    """

    at: int | None = None
    after: bool = False
    really: bool = False
    seen: list[str] = field(default_factory=list)

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        self._check()
        number = len(self.seen)
        self.seen.append(name)
        if number == self.at and not self.after:
            self._die()
        try:
            return do()
        finally:
            if number == self.at and self.after:
                self._die()

    def reading(self, _name: str, do: Callable[[], Any]) -> Any:
        self._check()
        return do()

    def _die(self) -> None:
        if self.really:
            os._exit(EXIT_CODE)
        super()._die()


def effects_of(small: SmallRun, act: Callable[[SmallRun], Any] = run) -> list[str]:
    """Return the side effects of an unbroken run, in order."""
    watcher = Dying()
    with watched(small.output, watcher):
        act(small)
    return watcher.seen


def die_here(small: SmallRun, at: int, *, after: bool, act: Callable[[SmallRun], Any] = run) -> bool:
    """Run until an effect in this process, as one that dies there; say whether it got so far."""
    with watched(small.output, Dying(at=at, after=after)):
        try:
            act(small)
        except Death:
            return True
    return False


def die_elsewhere(
    small: SmallRun, at: int, *, after: bool, environment: Mapping[str, str], processes: ForkServerContext
) -> bool:
    """Run until an effect in a process of its own, which ends there without a word; say whether it got so far."""
    process = processes.Process(target=_run_and_die, args=(small, at, after, dict(environment)))
    process.start()
    process.join(60)
    assert process.exitcode in (0, EXIT_CODE), f"it ended with {process.exitcode}"
    return process.exitcode == EXIT_CODE


def _run_and_die(small: SmallRun, at: int, after: bool, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with watched(small.output, Dying(at=at, after=after, really=True)):
        run(small)
