"""What a summary says of the time that an invocation took."""

import time

import pytest

from flows import label_collection
from flows.run import engine, planning
from flows.run.observer import Silent
from tests.reliability.small_run import SmallRun, as_driver, write_source
from tests.support.fakes import BrightPredictor

LISTING_S = 100


@pytest.mark.parametrize("prefect", [False, True])
def test_the_time_of_a_run_begins_before_its_images_are_listed(tmp_path, monkeypatch, prefect):
    clock, listed = time.monotonic, []
    monkeypatch.setattr(time, "monotonic", lambda: clock() + LISTING_S * bool(listed))
    config = SmallRun(write_source(tmp_path / "images", 3), str(tmp_path / "out")).config()
    if prefect:
        monkeypatch.setattr(label_collection, "orchestrated", lambda _told, _step, plain: plain())
        monkeypatch.setattr(label_collection, "PrefectObserver", lambda *_: Silent())
        monkeypatch.setattr(label_collection, "watch_wave", lambda _told, _label, outcome, *_: outcome())
        monkeypatch.setattr(label_collection, "FlowRecord", lambda _told: None)
        monkeypatch.setattr(label_collection, "_publish", lambda *_: None)
    planned = planning.planned_run(config, on_listed=listed.append)
    with as_driver(BrightPredictor()), planned as run, planning.at_hand(run):
        if prefect:
            summary, _ = label_collection._label_run(config, label_collection.PrefectReporter())
        else:
            summary = engine.run_directly(config, Silent())
    assert listed
    assert summary.elapsed_s >= LISTING_S
