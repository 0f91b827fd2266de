"""Images named as http(s) URIs: fetched only when asked for, bounded in size and time, each failure with its reason."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.errors import ProtocolError
from pipelines.labeling.shard import LabelConfig, LabelJob, label_shard
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage.filesystems import open_filesystem
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from pipelines.types import ImageRef, Reason, Shard
from tests.support.fakes import BrightPredictor, half_bright, png, text_prompt

pytestmark = pytest.mark.timeout(30)

PICTURE = png(half_bright())
SIGNED = "X-Amz-Date=20260101&X-Amz-Signature=canary-signature&part=canary-too"
LOCATIONS = {
    "picture": "/picture.png",
    "file": f"file:///etc/hostname?{SIGNED}",
    "no-host": f"https:///picture.png?{SIGNED}",
    "no-slash": f"https:/host/picture.png?{SIGNED}",
    "bracket": f"http://[broken/picture.png?{SIGNED}",
    "port": f"http://host:canary-port/picture.png?{SIGNED}",
    "space": f"http://ho st/picture.png?{SIGNED}",
    "itself": f"/to/itself?{SIGNED}",
    "password": f"http://canary-user:canary-password@127.0.0.1:9/picture.png?{SIGNED}",
}


class Web(BaseHTTPRequestHandler):
    """Answers by path; heeds no range, as many servers do."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/endless":
            self._begin(200)
            for _ in range(10_000):
                self.wfile.write(bytes(2**16))
        elif path == "/slow":
            self._begin(200)
            time.sleep(5)
        elif path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", LOCATIONS.get(path[4:]) or f"{path[3:]}?{SIGNED}")
            self.end_headers()
        elif path == "/picture.png":
            self._begin(200)
            self.wfile.write(PICTURE)
        else:
            self._begin(int(path[1:]))

    def _begin(self, status: int) -> None:
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A web server's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def get(uri: str, *, allow_http: bool = True, max_bytes: int = 10**6, timeout_s: float = 10) -> bytes:
    ref = ImageRef(image_id="a", uri=uri)
    return fetch(ref, options=None, max_bytes=max_bytes, timeout_s=timeout_s, allow_http=allow_http)


def test_an_image_comes_from_the_web_when_asked_for(web: str) -> None:
    assert get(f"{web}/picture.png") == PICTURE
    assert get(f"{web}/picture.png?size=large&x=a%20b") == PICTURE
    assert get(f"{web}/to/picture") == PICTURE


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/404", Reason.NOT_FOUND),
        ("/410", Reason.NOT_FOUND),
        ("/401", Reason.ACCESS_DENIED),
        ("/403", Reason.ACCESS_DENIED),
        ("/500", Reason.FETCH_FAILED),
        ("/503", Reason.FETCH_FAILED),
        ("/to/file", Reason.FETCH_FAILED),
    ],
)
def test_what_the_web_refuses_has_a_reason(web: str, path: str, reason: Reason) -> None:
    with pytest.raises(FetchError) as refused:
        get(web + path)
    assert refused.value.reason == reason
    assert path in str(refused.value) or path == "/to/file"


@pytest.mark.parametrize("place", ["500", "503", "403", "404", *sorted(set(LOCATIONS) - {"picture"})])
def test_no_error_holds_the_signature_of_where_a_server_sends_us(web: str, place: str, tmp_path: Path) -> None:
    uri = f"{web}/to/{place}"
    with pytest.raises(FetchError) as refused:
        get(uri)
    assert "canary" not in str(refused.value)
    assert uri in str(refused.value)
    store = open_store(str(tmp_path))
    job = LabelJob(run_id="run-1", prompts=(text_prompt("a"),), config=LabelConfig(), allow_http=True)
    shard = Shard(shard_id="shard-00000", images=(ImageRef(image_id="a", uri=uri),))
    label_shard(shard, job=job, store=store, predictor=BrightPredictor(), attempt="a-0")
    (row,) = open_table(store, "images", "run-1").to_table(columns=["status", "error"]).to_pylist()
    assert row == {"status": "quarantined", "error": str(refused.value)}


def test_an_error_tells_which_host_it_was_sent_on_to(web: str) -> None:
    with pytest.raises(FetchError, match=r"/to/503: OSError: HTTP 503 Service Unavailable"):
        get(f"{web}/to/503")
    elsewhere = web.replace("127.0.0.1", "localhost")
    LOCATIONS["elsewhere"] = f"{elsewhere}/500?{SIGNED}"
    with pytest.raises(FetchError, match=r"HTTP 500 Internal Server Error from localhost$"):
        get(f"{web}/to/elsewhere")


def test_a_server_that_sends_without_end_is_cut_off(web: str) -> None:
    with pytest.raises(FetchError, match="more than max_image_bytes, 100,000") as refused:
        get(f"{web}/endless", max_bytes=100_000)
    assert refused.value.reason == Reason.TOO_MANY_BYTES


def test_a_server_that_does_not_go_on_is_given_up(web: str) -> None:
    started = time.monotonic()
    with pytest.raises(FetchError) as refused:
        get(f"{web}/slow", timeout_s=0.5)
    assert refused.value.reason == Reason.FETCH_TIMEOUT
    assert time.monotonic() - started < 4


def test_a_server_that_does_not_answer_is_a_reason_too() -> None:
    with pytest.raises(FetchError) as refused:
        get("http://127.0.0.1:9/picture.png")
    assert refused.value.reason == Reason.FETCH_FAILED
    assert "the server does not answer" in str(refused.value)
    assert "endpoint_url" not in str(refused.value).casefold()  # a setting of object stores


@pytest.mark.parametrize("uri", ["http://host/a.png", "https://host/a.png", "HTTP://host/a.png"])
def test_the_web_is_not_asked_unless_that_is_allowed(uri: str) -> None:
    with pytest.raises(FetchError, match=r"source\.allow_http") as refused:
        get(uri, allow_http=False)
    assert refused.value.reason == Reason.NOT_ALLOWED


@pytest.mark.parametrize(
    "uri", ["ftp://host/a.png", "sftp://host/a", "hdfs://a/b", "github://a/b", "zip://a::file:///b", "data://a", "x://"]
)
def test_no_other_protocol_is_opened_whatever_is_allowed(uri: str) -> None:
    with pytest.raises(ProtocolError, match="not supported"):
        open_filesystem(uri, allow_http=True)
    with pytest.raises(FetchError) as refused:
        get(uri)
    assert refused.value.reason == Reason.NOT_ALLOWED


def test_an_image_that_may_not_be_fetched_becomes_a_row_beside_its_neighbours(web: str, tmp_path: Path) -> None:
    uris = [f"{web}/picture.png", "ftp://host/b.png", f"{web}/404"]
    images = tuple(ImageRef(image_id=str(number), uri=uri) for number, uri in enumerate(uris))
    store = open_store(str(tmp_path))
    for run_id, allow_http in (("run-1", False), ("run-2", True)):
        job = LabelJob(run_id=run_id, prompts=(text_prompt("a"),), config=LabelConfig(), allow_http=allow_http)
        shard = Shard(shard_id="shard-00000", images=images)
        receipt = label_shard(shard, job=job, store=store, predictor=BrightPredictor(), attempt="a-0")
        assert receipt.reason_counts == ({"not_allowed": 1, "not_found": 1} if allow_http else {"not_allowed": 3})
    assert open_table(store, "annotations", "run-2").count_rows() == 1


def test_an_error_of_fetching_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FetchError(Reason.NOT_FOUND, "a.jpg is not there")))
    assert (error.reason, str(error)) == (Reason.NOT_FOUND, "a.jpg is not there")
