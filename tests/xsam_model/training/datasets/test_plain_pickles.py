import collections
import os
import pickle

import pytest

from xsam_model.training.datasets.plain_pickles import read_plain_pickle

PLAIN = [{"ref_id": 1, "sent": "the dog", "box": (1.5, None, True), "ids": {1, 2}, "more": frozenset({"a"})}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_read(tmp_path, protocol):
    data = [*PLAIN, collections.OrderedDict(a=1)]
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps(data, protocol))
    assert read_plain_pickle(path) == data


def test_text_of_python_2_is_read(tmp_path):
    path = tmp_path / "refs.p"
    path.write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nS'caf\\xc3\\xa9'\np3\nsa.")
    assert read_plain_pickle(path) == [{"sent": "café"}]


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (lambda marker: Runs(os.mkdir, marker), "mkdir"),
        (lambda marker: Runs(eval, f"__import__('os').mkdir({marker!r})"), "builtins.eval"),
        (lambda marker: Runs(open, marker, "w"), "open"),
        (lambda marker: collections.Counter("abc"), "collections.Counter"),
    ],
)
def test_anything_else_is_refused_and_never_run(tmp_path, value, named):
    marker = str(tmp_path / "marker")
    path = tmp_path / "refs.p"
    path.write_bytes(pickle.dumps([value(marker)]))
    with pytest.raises(ValueError, match=rf"refs\.p: not a pickle of plain data .*{named}.*as JSON"):
        read_plain_pickle(path)
    assert not os.path.exists(marker)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps(PLAIN)[:-5], b"\x80\x04R."])
def test_a_broken_pickle_is_an_error_that_says_so(tmp_path, data):
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="not a pickle of plain data"):
        read_plain_pickle(path)
    with pytest.raises(ValueError, match="check the path"):
        read_plain_pickle(tmp_path / "none.p")
