"""Which images of a run a retry labels again."""

from __future__ import annotations

from pathlib import Path

from pipelines.table.quarantined import quarantined_images
from tests.support.labeled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")


def left(folder: Path, *asked_again: str) -> list[str]:
    """Ids that are left of a run after a relabel of "a" and "b", of which it answers "a"."""
    store, _ = write_output(folder, {"a": None, "b": None, "c": None, "d": []}, common=[CAT], run_id="run-1")
    prompts = [one for one in (CAT, DOG) if one.category_name in asked_again]
    found = {"a": [mask(prompts[0], box(0, 0, 4, 4))], "b": None}
    again = {"relabel": {"where_sha256": "0" * 64}}
    write_output(folder, found, common=prompts, run_id="relabel-1", fingerprint=again)
    return [ref.image_id for ref in quarantined_images(store, "run-1")]


def test_what_a_relabel_has_answered_is_not_tried_again(tmp_path: Path) -> None:
    assert left(tmp_path / "same", "cat", "dog") == ["b", "c"]
    assert left(tmp_path / "other", "dog") == ["a", "b", "c"]
