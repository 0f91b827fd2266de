from __future__ import annotations

import errno
import os

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from pipelines.errors import SourceError
from pipelines.sources.fetch import FetchError, fetch
from pipelines.sources.tabular import source_errors
from pipelines.storage.client_errors import explain, is_denied
from pipelines.types import ImageRef, Reason


def archived() -> BaseException:
    said = {"Error": {"Code": "InvalidObjectState", "Message": "The operation is not valid for the storage class"}}
    client = ClientError(said, "GetObject")  # type: ignore[arg-type]
    try:
        raise translate_boto_error(client) from client
    except OSError as error:
        return error


def test_an_archived_object_is_told_from_one_that_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    error = archived()
    assert isinstance(error, PermissionError), "s3fs takes it for one, and the rule below is no longer needed"
    assert not is_denied(error)
    assert "archived (GLACIER" in explain(error, "s3://b/a.jpg")
    assert "access denied" not in explain(error, "s3://b/a.jpg")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.sources.fetch._read_start", refuse)
    with pytest.raises(FetchError, match=r"archived.*restore it.*retry --reason fetch_failed") as refused:
        fetch(ImageRef(image_id="a", uri="/a.jpg"), options=None, max_bytes=10, timeout_s=10)
    assert refused.value.reason == Reason.FETCH_FAILED


def test_a_long_path_or_error_is_shown_by_its_ends() -> None:
    path = "/9j/" + "x" * 70_000 + "/end.jpg"
    message = explain(OSError(errno.ENAMETOOLONG, "File name too long", path), path)
    assert len(message) < 300
    assert message.startswith("/9j/")
    assert "(70,012 characters)" in message
    assert message.endswith("/end.jpg: OSError: [Errno 36] File name too long")
    assert len(explain(ValueError("y" * 10_000), "/a.jpg")) < 400
    assert len(explain(FileNotFoundError(path), path)) < 400
    with pytest.raises(SourceError) as refused, source_errors(path):
        os.stat(path)
    assert len(str(refused.value)) < 400
