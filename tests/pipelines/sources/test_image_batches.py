from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.image_batches import BATCH_SIZE, FILES, LISTED, file_batch, to_batches, to_refs, with_prompts
from pipelines.types import ImageRef, Prompt, Region, Rle
from tests.support.fakes import text_prompt

_MASK = Region(kind="mask", mask=Rle(size_hw=(3, 4), counts="11d1"))
_POINT = Region(kind="point", coordinates=(1.5, 2.25))
_SENTENCE = text_prompt("cat")


def _region(name: str, region: Region) -> Prompt:
    return Prompt(
        prompt_id=name, task="intseg", text=name, category_id=3, category_name="thing", region=region, source_row=7
    )


_PROMPTS = st.lists(st.sampled_from([_SENTENCE, _region("m", _MASK), _region("p", _POINT)]), max_size=3).map(tuple)
_REFS = st.builds(
    ImageRef,
    image_id=st.text(),
    uri=st.text(),
    num_bytes=st.none() | st.integers(0, 2**62),
    etag=st.none() | st.text(),
    source_columns=st.none() | st.just('{"a": 1}'),
    prompts=_PROMPTS,
    common=st.none() | st.lists(st.text(), max_size=2).map(tuple),
    version=st.integers(1, 9),
)


@settings(deadline=None)
@given(st.lists(_REFS))
def test_images_are_the_same_after_a_batch(refs) -> None:
    assert list(to_refs(to_batches(refs))) == refs


@settings(deadline=None)
@given(st.lists(_REFS, min_size=1))
def test_columns_that_are_left_out_read_as_the_defaults(refs) -> None:
    kept = [ImageRef(image_id=r.image_id, uri=r.uri, num_bytes=r.num_bytes, etag=r.etag) for r in refs]
    assert list(to_refs(to_batches(refs, FILES))) == kept


def test_no_images_are_one_empty_batch_that_still_tells_its_columns() -> None:
    (batch,) = to_batches([], LISTED)
    assert (batch.num_rows, batch.schema) == (0, LISTED)


def test_an_endless_listing_is_read_one_batch_at_a_time() -> None:
    endless = (ImageRef(image_id=str(number), uri="u") for number in itertools.count())
    assert [len(batch) for batch in itertools.islice(to_batches(endless), 2)] == [BATCH_SIZE, BATCH_SIZE]


@settings(deadline=None)
@given(st.lists(_PROMPTS))
def test_prompts_go_to_the_images_that_they_belong_to(prompts) -> None:
    (batch,) = to_batches([ImageRef(image_id=str(number), uri="u") for number in range(len(prompts))], FILES)
    joined = with_prompts(batch, prompts)
    assert [ref.prompts for ref in to_refs([joined])] == prompts


def test_files_are_named_below_their_folder() -> None:
    refs = list(to_refs([file_batch("s3://b/x/", ["1.jpg", "y/2.jpg"], [5, None], ["e", None])]))
    assert refs == [
        ImageRef(image_id="1.jpg", uri="s3://b/x/1.jpg", num_bytes=5, etag="e"),
        ImageRef(image_id="y/2.jpg", uri="s3://b/x/y/2.jpg"),
    ]


def test_a_name_that_no_table_can_hold_is_an_error() -> None:
    with pytest.raises(UnicodeEncodeError):
        file_batch("/x/", ["a\udcff.jpg"], [1], ["e"])
