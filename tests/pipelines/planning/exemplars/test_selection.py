"""Exemplars that are asked of some images: the listing says of which, by patterns of ids."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipelines.errors import SourceError
from pipelines.planning.exemplars.selection import Selection
from pipelines.sources.image_batches import file_batch, to_refs
from pipelines.types import Prompt

PROMPTS = [
    Prompt(prompt_id=prompt_id, task="vgdseg", text=prompt_id, category_id=0, category_name=prompt_id)
    for prompt_id in ("vgdseg:a", "vgdseg:b", "vgdseg:c")
]
NAMES = ["new/1.png", "new/2.png", "old.(1).png", "o\nd.png"]


def listing() -> list[pa.RecordBatch]:
    return [file_batch("/photos/", names, [1] * 2, [None] * 2) for names in (NAMES[:2], NAMES[2:])]


def asked(patterns: dict[str, str]) -> tuple[Selection, dict[str, tuple[str, ...] | None]]:
    selection = Selection(PROMPTS, patterns)
    return selection, {ref.image_id: ref.common for ref in to_refs(selection.marked(listing()))}


def test_without_patterns_the_listing_stays_as_it_is() -> None:
    batches = listing()
    assert list(Selection(PROMPTS, {}).marked(batches)) == batches


def test_a_pattern_chooses_images_by_their_ids() -> None:
    selection, common = asked({"vgdseg:b": "new/*"})
    assert common == {name: None if name.startswith("new") else ("vgdseg:a", "vgdseg:c") for name in NAMES}
    assert selection.check() == ["vgdseg:b is asked of 2 of 4 listed images"]


def test_signs_of_regular_expressions_have_no_meaning() -> None:
    _, common = asked({"vgdseg:a": "old.(?).png", "vgdseg:b": "o?d.png"})
    assert common["old.(1).png"] == ("vgdseg:a", "vgdseg:c")
    assert common["o\nd.png"] == ("vgdseg:b", "vgdseg:c")
    assert common["new/1.png"] == ("vgdseg:c",)


def test_a_pattern_that_no_image_matches_is_refused() -> None:
    selection, _ = asked({"vgdseg:b": "nwe/*"})
    with pytest.raises(SourceError, match=r"vgdseg:b is to be asked of images 'nwe/\*', and none of the 4 listed"):
        selection.check()
