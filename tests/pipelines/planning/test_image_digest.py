from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from pipelines.planning.image_digest import ImageDigest
from pipelines.sources.image_batches import FILES, IMAGES, file_batch, to_batches
from pipelines.types import ImageRef, Region, Rle
from tests.support.fakes import sentence

BOX = Region(kind="box", coordinates=(1.0, 2.0, 3.5, 4.0))
MASK = Region(kind="mask", mask=Rle((4, 4), "52;"))
PLAIN = ImageRef(image_id="a.png", uri="/photos/a.png", num_bytes=10, etag="e1")
ASKED = replace(
    PLAIN,
    image_id="ü.png",
    source_columns='{"site": "north"}',
    prompts=(replace(sentence("vgdseg", "t"), region=BOX), replace(sentence("intseg", "t"), region=MASK)),
    common=("ovseg:car", "ovseg:tree"),
    version=3,
)
REFS = (PLAIN, ASKED, replace(PLAIN, image_id="b.png", num_bytes=None, etag=None))


def digest(refs: Sequence[ImageRef], *cuts: int, schema: pa.Schema = IMAGES) -> str:
    """Digest images that come in several tables, cut at these places."""
    made = ImageDigest()
    for start, end in zip((0, *cuts), (*cuts, len(refs)), strict=True):
        made.add(pa.Table.from_batches(to_batches(refs[start:end], schema)))
    return made.hexdigest()


def test_it_does_not_depend_on_where_a_listing_is_cut_into_batches() -> None:
    whole = digest(REFS)
    assert digest(REFS, 1) == digest(REFS, 2) == digest(REFS, 1, 1, 2, 3) == whole
    sliced = ImageDigest()
    table = pa.Table.from_batches(to_batches([PLAIN, *REFS, PLAIN]))
    sliced.add(pa.concat_tables([table.slice(1, 2), table.slice(3, 1)]))
    assert sliced.hexdigest() == whole


def test_a_column_that_is_left_out_is_one_of_nulls() -> None:
    refs = [PLAIN, replace(PLAIN, image_id="b.png")]
    columns = zip(*((ref.image_id, ref.num_bytes, ref.etag) for ref in refs), strict=True)
    names, sizes, etags = map(list, columns)
    listed = ImageDigest()
    listed.add(pa.Table.from_batches([file_batch("/photos/", names, sizes, etags)]))
    refs = [replace(ref, uri=f"/photos/{ref.image_id}") for ref in refs]
    assert listed.hexdigest() == digest(refs) == digest(refs, schema=FILES)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": "ü.pn"},
        {"uri": "/photos/b.png"},
        {"num_bytes": 11},
        {"num_bytes": None},
        {"num_bytes": 0},
        {"etag": "e2"},
        {"etag": ""},
        {"etag": None},
        {"source_columns": None},
        {"version": 1},
        {"common": ("ovseg:car", "ovseg:tre", "e")},
        {"common": ()},
        {"common": None},
        {"prompts": ASKED.prompts[:1]},
        {"prompts": ASKED.prompts[::-1]},
        {"prompts": (replace(ASKED.prompts[0], explain=True), ASKED.prompts[1])},
        {"prompts": (replace(ASKED.prompts[0], region=replace(BOX, coordinates=(1.0, 2.0, 3.5, 5.0))), MASK)[:1]},
    ],
    ids=str,
)
def test_whatever_differs_in_an_image_shows(changes: dict[str, Any]) -> None:
    changed = replace(ASKED, **changes)
    assert digest([PLAIN, changed]) != digest([PLAIN, ASKED])


def test_order_and_boundaries_of_values_count() -> None:
    assert digest(REFS) != digest(REFS[::-1])
    assert digest(REFS[:2]) != digest(REFS)
    one, other = ("ab", "c"), ("a", "bc")
    assert len({digest([replace(PLAIN, image_id=name) for name in names]) for names in (one, other)}) == 2
