"""What an incremental run says of itself that has nothing to ask."""

from __future__ import annotations

import pytest

from flows.run.updates import nothing_new
from pipelines.planning.coverage import UpdateCounts


@pytest.mark.parametrize(
    ("counts", "is_asked_otherwise", "said"),
    [
        ({"gone": 2}, False, "only notes which images are not listed any more (2)"),
        ({"gone": 2}, True, "only notes that what is asked has changed and which images are not listed any more (2)"),
        ({}, True, "only notes that what is asked has changed"),
        ({}, False, "only notes that images are listed again"),
    ],
)
def test_a_run_without_images_says_what_it_notes(counts: dict[str, int], is_asked_otherwise: bool, said: str) -> None:
    told = nothing_new(UpdateCounts(covered=1, **counts), is_asked_otherwise=is_asked_otherwise)
    assert told == f"the one listed image is covered; this run labels nothing and {said}"
