"""Folders, lists and tables as people have them: listed as one who knows their format would, or refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import SourceError
from pipelines.image_formats import LeftOut
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.sources.listing import list_batches
from pipelines.types import ImageRef
from tests.support.containers import content
from tests.support.odd_sources import ODD_SOURCES, REFUSED_SOURCES, OddSource, RefusedSource


def planned(options: dict[str, str], left_out: LeftOut) -> dict[str, ImageRef]:
    """The images of a source by id, as they are planned."""
    uri, others = options["uri"], {name: value for name, value in options.items() if name != "uri"}
    with draft_plan(list_batches(uri, left_out=left_out, **others), PlanConfig(), left_out=left_out) as draft:
        return {ref.image_id: ref for shard in draft.shards() for ref in shard.images}


@pytest.mark.parametrize("source", ODD_SOURCES, ids=lambda source: source.name)
def test_an_odd_source_gives_its_images(source: OddSource, tmp_path: Path) -> None:
    left_out = LeftOut()
    refs = planned(source.build(tmp_path), left_out)
    assert {name: content(ref) for name, ref in refs.items()} == source.pictures_in(tmp_path)
    columns = {name: json.loads(refs[name].source_columns or "{}") for name in source.columns}
    assert columns == source.columns
    found = {name: count for name, count in left_out.to_dict().items() if name != "others"}
    assert found == source.left_out


@pytest.mark.parametrize("source", REFUSED_SOURCES, ids=lambda source: source.name)
def test_what_cannot_be_read_is_refused_in_short_words(source: RefusedSource, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=source.message) as refused:
        planned(source.build(tmp_path), LeftOut())
    assert len(str(refused.value)) < 700 + 2 * len(str(tmp_path))
