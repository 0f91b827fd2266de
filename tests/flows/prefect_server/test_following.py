"""What is shown of a run that is stopped, or whose driver is killed. Prefect's bookkeeping is left out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State

from flows.prefect_server import following as module
from flows.prefect_server import reports
from flows.prefect_server.driver import GONE, Message
from flows.prefect_server.following import Following
from flows.prefect_server.reports import PrefectReporter

pytestmark = pytest.mark.timeout(60)


class Driver:
    """Stands for the driver: what it tells, and what it is told."""

    def __init__(self, *tells: Message) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.told: list[Message] = []
        for message in tells:
            self.inbox.put(message)

    def say(self, *message: Any) -> None:
        self.told.append(message)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Driver, list[str]]]:
    """Follow a run in no flow run; return its driver, and what the steps of Prefect have raised."""

    def run(*tells: Message) -> tuple[Driver, list[str]]:
        raised: list[str] = []

        def orchestrated(_told: PrefectReporter, _step: object, plain: Callable[[], object]) -> None:
            try:
                plain()
            except Exception as error:
                raised.append(str(error))
                raise

        monkeypatch.setattr(module, "FlowRecord", lambda _told: object())
        monkeypatch.setattr(module, "orchestrated", orchestrated)
        driver = Driver(*tells)
        following = Following(driver, PrefectReporter(), 1, 0.0)  # type: ignore[arg-type]
        following.follow()
        return driver, raised

    return run


@pytest.fixture
def wakes() -> Iterator[threading.Event]:
    """Set when a wave is to wake up."""
    yield (event := threading.Event())
    event.set()


@pytest.mark.parametrize("end", [("end", "Terminated", ""), ("end", "KeyboardInterrupt", ""), GONE])
def test_a_stopped_run_does_not_wait_for_waves_that_sleep_until_their_next_try(
    follow: Callable[..., tuple[Driver, list[str]]],
    wakes: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    end: Message,
) -> None:
    woken = threading.Event()

    def watch(_told: PrefectReporter, _label: str, outcome: Callable[[], object], *_: object) -> None:
        outcome()
        wakes.wait()
        outcome()
        woken.set()

    monkeypatch.setattr(module, "watch_wave", watch)
    monkeypatch.setattr(module, "_STOPPED_WAVES_S", 0.01)
    monkeypatch.setattr(module, "_WAVES_S", 1000.0)
    driver, _ = follow(("wave", "1/1"), ("outcome", "1/1", "a: bad", True), end)
    wakes.set()
    assert woken.wait(20)
    assert driver.told == []  # or it would be taken for a wave of the next run


def test_a_verification_during_which_the_driver_is_killed_is_not_shown_as_complete(
    follow: Callable[..., tuple[Driver, list[str]]],
) -> None:
    assert follow(("verify",), ("verified", ""), ("end", "", ""))[1] == []
    assert follow(("verify",), GONE)[1] == ["DriverEnded the process of the run has ended"]


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (("", ""), "COMPLETED"),
        (("RunFailedError", "2 images are not accounted for"), "FAILED"),
        (("StrangeError", ""), "FAILED"),
        (("Terminated", ""), "CRASHED"),
        (("KeyboardInterrupt", ""), "CRASHED"),
        (GONE[1:], "CRASHED"),
    ],
)
def test_the_end_of_a_run_whose_flow_run_has_lost_its_server_is_told_as_it_was(
    monkeypatch: pytest.MonkeyPatch, end: tuple[str, str], state: str
) -> None:
    states: list[State[Any]] = []
    monkeypatch.setattr(reports, "_set_end", lambda _run, told: states.append(told))
    told = PrefectReporter()
    told.flow_run_id = uuid4()
    Following(Driver(("end", *end)), told, 1, 0.0).go_on_alone()  # type: ignore[arg-type]
    assert [one.type.value for one in states] == [state]
