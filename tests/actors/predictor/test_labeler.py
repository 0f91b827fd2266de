from __future__ import annotations

from pathlib import Path

from actors.predictor.labeler import RunLabeler
from pipelines.labeling.shard import LabelJob
from pipelines.storage.store import Store
from pipelines.table.reader import open_table
from tests.support.fakes import BrightPredictor, text_prompt, write_images
from tests.support.labeled import plan_run


def test_a_shard_that_another_attempt_has_committed_is_not_labeled_again(store: Store, tmp_path: Path) -> None:
    _, (shard,) = plan_run(store, "run-1", write_images(tmp_path / "photos", 3))
    predictor = BrightPredictor()
    labeler = RunLabeler(predictor, LabelJob(run_id="run-1", prompts=(text_prompt("bright"),)), store.uri)
    first = labeler.label(shard, "d-0")
    before = store.find("")
    second = labeler.label(shard, "e-0")
    assert (first.committed_here, second.committed_here) == (True, False)
    assert (second.attempt, second.status_counts) == ("d-0", {"ok": 3})
    assert len(predictor.calls) == 1
    assert store.find("") == before
    assert open_table(store, "images").count_rows() == 3
