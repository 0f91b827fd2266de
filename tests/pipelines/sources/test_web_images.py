"""Images named as http(s) URIs: fetched only when asked for, bounded in size and time, each failure with its reason."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote, unquote

import pytest

from pipelines.errors import ProtocolError
from pipelines.labeling.shard import LabelConfig, LabelJob, label_shard
from pipelines.sources.fetch import FetchError, fetch
from pipelines.storage import web as web_client
from pipelines.storage.filesystems import open_filesystem
from pipelines.storage.store import open_store
from pipelines.storage.web import HttpConfig
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


SEEN: list[tuple[str, dict[str, str]]] = []


class Web(BaseHTTPRequestHandler):
    """Answers by path; heeds no range, as many servers do."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        SEEN.append((self.path, dict(self.headers)))
        if path.startswith("/busy/"):
            self._be_busy(path)
        elif path == "/endless":
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

    def _be_busy(self, path: str) -> None:
        """Refuse with /busy/STATUS/RETRY-AFTER/TIMES as often as that says."""
        status, after, times = path.split("/")[2:]
        if sum(seen == self.path for seen, _ in SEEN) > int(times):
            self._begin(200)
            self.wfile.write(PICTURE)
            return
        self.send_response(int(status))
        if after != "-":
            self.send_header("Retry-After", unquote(after))
        self.end_headers()

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
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which are not made."""
    made, sleep = list[float](), asyncio.sleep

    async def recorded(pause_s: float) -> None:
        made.append(pause_s)
        await sleep(0)

    monkeypatch.setattr(
        web_client, "asyncio", SimpleNamespace(get_running_loop=asyncio.get_running_loop, sleep=recorded)
    )
    SEEN.clear()
    return made


def get(uri: str, *, allow_http: bool = True, max_bytes: int = 10**6, timeout_s: float = 10, **http: Any) -> bytes:
    ref = ImageRef(image_id="a", uri=uri)
    options = {"http": HttpConfig(**http).model_dump(mode="json")} if http else None
    return fetch(ref, options=options, max_bytes=max_bytes, timeout_s=timeout_s, allow_http=allow_http)


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


@pytest.mark.parametrize(
    ("status", "after", "pause_s"),
    [(429, "3", 3), (503, "0", 0), (429, "-", 0.5), (504, "soon", 0.5), (502, "-1", 0.5)],
)
def test_a_busy_server_is_asked_again_after_the_pause_that_it_asks_for(
    web: str, pauses: list[float], status: int, after: str, pause_s: float
) -> None:
    assert get(f"{web}/busy/{status}/{after}/2") == PICTURE
    assert pauses == [pause_s, pause_s if after.isdecimal() else 1]
    assert len(SEEN) == 3


def test_a_pause_may_be_given_as_a_date(web: str, pauses: list[float]) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert get(f"{web}/busy/503/{quote(until)}/1", timeout_s=100) == PICTURE
    assert 50 < pauses[0] <= 60


def test_a_server_that_stays_busy_is_given_up(web: str, pauses: list[float]) -> None:
    with pytest.raises(FetchError, match=r"HTTP 429 Too Many Requests after 4 tries; it asks to wait 1 s") as refused:
        get(f"{web}/busy/429/1/9")
    assert refused.value.reason == Reason.FETCH_FAILED
    with pytest.raises(FetchError, match="after 2 tries"):
        get(f"{web}/busy/429/2/9", tries=2)
    assert pauses == [1, 1, 1, 2]


def test_no_pause_goes_beyond_the_time_of_the_fetch(web: str, pauses: list[float]) -> None:
    with pytest.raises(FetchError, match=r"HTTP 503 Service Unavailable; it asks to wait 3,600 s"):
        get(f"{web}/busy/503/3600/1")
    assert (pauses, len(SEEN)) == ([], 1)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/picture.png?a=%2F%41%7e&b=%c3%a9", None),
        ("/picture.png?sig=a%2Bb+c%3D&x=%252F", None),
        ("/picture.png?ü=é b", "/picture.png?%C3%BC=%C3%A9%20b"),
        ("/picture.png?x=100%&y=%zz", "/picture.png?x=100%25&y=%25zz"),
        ("/picture.png?a='(b)*;c,!$&d[0]=1#part", "/picture.png?a='(b)*;c,!$&d[0]=1"),
    ],
)
def test_escapes_are_sent_as_given_and_only_what_must_be_is_escaped(web: str, written: str, sent: str | None) -> None:
    assert get(web + written) == PICTURE
    assert SEEN[0][0] == (sent or written)


def test_servers_are_told_who_asks_and_what_the_config_says(web: str) -> None:
    get(f"{web}/picture.png")
    get(f"{web}/to/picture", user_agent="photos/1 (me@example.org)", headers={"Referer": "https://example.org/"})
    assert SEEN[0][1]["User-Agent"] == "xsam-label"
    assert [(seen["User-Agent"], seen["Referer"]) for _, seen in SEEN[1:]] == [
        ("photos/1 (me@example.org)", "https://example.org/")
    ] * 2


def test_a_secret_goes_to_its_host_alone(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOS_KEY", "canary-key")
    named: dict[str, Any] = {"secret_headers": {"X-Api-Key": "PHOTOS_KEY"}, "hosts": ["127.0.0.1"]}
    elsewhere = web.replace("127.0.0.1", "localhost")
    LOCATIONS["other-host"] = f"{elsewhere}/picture.png"
    get(f"{web}/to/other-host", **named)
    get(f"{elsewhere}/picture.png", **named)
    assert [seen.get("X-Api-Key") for _, seen in SEEN] == ["canary-key", None, None]
    monkeypatch.delenv("PHOTOS_KEY")
    with pytest.raises(FetchError, match=r"the environment variable PHOTOS_KEY .* is not set") as refused:
        get(f"{web}/picture.png", **named)
    assert refused.value.reason == Reason.ACCESS_DENIED


@pytest.mark.parametrize(
    ("http", "message"),
    [
        ({"headers": {"Authorization": "canary"}}, "header Authorization looks like a secret.*secret_headers"),
        ({"headers": {"X-Api-Key": "canary"}}, "header X-Api-Key looks like a secret"),
        ({"headers": {"X-What": "Bearer canary"}}, "header X-What looks like a secret"),
        ({"headers": {"A B": "1"}}, "header 'A B' is none"),
        ({"headers": {"A": "1\r\nB: 2"}}, "header 'A' is none"),
        ({"secret_headers": {"Authorization": "Bearer canary"}, "hosts": ["a"]}, "name of an environment variable"),
        ({"secret_headers": {"Authorization": "TOKEN"}}, "hosts is empty"),
        ({"tries": 0}, "tries is 0"),
    ],
)
def test_headers_that_cannot_be_sent_or_kept_are_refused(http: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        HttpConfig(**http)
    assert "canary" not in str(refused.value)


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


def test_an_image_that_may_not_be_fetched_becomes_a_row_beside_its_neighbors(web: str, tmp_path: Path) -> None:
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
