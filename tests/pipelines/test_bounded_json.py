from __future__ import annotations

import io
import json
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.bounded_json import PlainJsonFile

_TEXTS = st.lists(st.sampled_from(["NaN", "Infinity", "-", "N", '"', "\\", "\n", "ü", "a"]), max_size=4).map("".join)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(width=16) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=8,
)


def without_nan(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:
        return None
    if isinstance(value, dict):
        return {name: without_nan(item) for name, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list) else value


def refuse(constant: str) -> None:
    raise AssertionError(constant)


@settings(deadline=None, max_examples=60)
@given(value=_VALUES, is_ascii=st.booleans(), has_mark=st.booleans(), size=st.integers(1, 12))
def test_a_file_of_python_reads_as_strict_json_in_pieces_of_any_size(
    value: Any, is_ascii: bool, has_mark: bool, size: int
) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii).encode()
    file, read = PlainJsonFile(io.BytesIO(b"\xef\xbb\xbf" * has_mark + text)), b""
    while piece := file.read(size):
        read += piece
    assert json.loads(read, parse_constant=refuse) == without_nan(value)


def test_a_file_that_is_cut_short_keeps_what_it_has() -> None:
    for text in (b"", b"\xef", b'{"a": Na', b'"\\', b"-"):
        assert b"".join(iter(partial(PlainJsonFile(io.BytesIO(text)).read, 3), b"")) == text
    assert PlainJsonFile(io.BytesIO(b"[NaN]")).read(0) == b""
