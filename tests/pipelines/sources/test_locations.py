from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.locations import ByteRange, ParquetCell, split_location

NUMBERS = st.integers(0, 10**18 - 1)
PLACES = st.one_of(
    st.builds(ByteRange, NUMBERS, NUMBERS, st.none() | st.integers(0, 2**32 - 1)),
    st.builds(ParquetCell, st.text(st.characters(codec="utf-8"), min_size=1), NUMBERS),
)


@given(before=st.text(), place=PLACES, inner=PLACES)
def test_a_place_is_read_as_it_was_written_whatever_the_files_name(
    before: str, place: ByteRange | ParquetCell, inner: ParquetCell
) -> None:
    for name in (before, f"{before}{inner}", f"{before}#whole"):
        assert split_location(f"{name}{place}") == (name, place)
        assert split_location(f"{name}#whole") == (name, None)


@pytest.mark.parametrize(
    "uri",
    [
        "/a #1.jpg",
        "s3://b/#",
        "x#offset=1",
        "x#offset=1&size=",
        "x#offset=-1&size=2",
        "x#offset=1&size=2&header=12",
        "x#offset=1&size=2\n",
        "x#column=&row=1",
        "x#row=1",
        "x#offset=1&size=2.jpg",
        "x#wholesome",
    ],
)
def test_what_only_resembles_a_place_is_part_of_the_name(uri: str) -> None:
    assert split_location(uri) == (uri, None)
