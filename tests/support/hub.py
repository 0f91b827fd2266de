"""A Hugging Face Hub for the tests, as small as ``hf://`` and `fetch-model` need it, on the loopback address."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_LARGE = 100_000


@dataclass
class Hub:
    """A repository that it holds, and what it was asked of it.

    Attributes:
        repo: its name, e.g. "user/name".
        files: by path.
        token: what it demands, if anything.
        kind: "datasets" or "models".
        is_gated: whether anybody may see what files there are, but without the token not fetch them.
        breaks_after: bytes of a file after which the connection breaks, and every later one is refused; None for none.
        page: what it answers instead of anything else, with status 200, as a proxy does; None for nothing.
        endpoint: its address.
        requests: method, path, range and authorization of each request.
    """

    repo: str
    files: dict[str, bytes]
    token: str | None = None
    kind: str = "datasets"
    is_gated: bool = False
    breaks_after: int | None = None
    page: bytes | None = None
    endpoint: str = ""
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the API describes it."""
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def sibling(self, path: str) -> dict[str, Any]:
        """A file as the API describes it with a whole repository; what is large is in Git LFS."""
        data, digest = self.files[path], hashlib.sha256(self.files[path]).hexdigest()
        lfs = {"lfs": {"sha256": digest, "size": len(data), "pointerSize": 134}} if len(data) > _LARGE else {}
        return {"rfilename": path, "size": len(data), "blobId": hashlib.sha1(data).hexdigest(), **lfs}

    def tree(self, folder: str, is_recursive: bool) -> list[dict[str, Any]] | None:
        """The entries below a folder; None where there is none."""
        base = f"{folder}/" if folder else ""
        below = [path for path in self.files if path.startswith(base)]
        folders = {base + path[len(base) :].split("/", 1)[0] for path in below if "/" in path[len(base) :]}
        if not below:
            return None
        if is_recursive:
            every = {path.rsplit("/", n)[0] for path in below for n in range(1, path.count("/") + 1)}
            folders = {path for path in every if path.startswith(base)}
        listed = [path for path in below if is_recursive or "/" not in path[len(base) :]]
        return [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)] + [
            self.entry(path) for path in sorted(listed)
        ]


class _Answer(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True  # which holds a body back until its headers are acknowledged
    hubs: Sequence[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, code: str) -> None:
        self.answer(404, b"{}", X_Error_Code=code)

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path = unquote(address.path)
        hub = next((one for one in self.hubs if f"/{one.repo}/" in f"{path}/"), self.hubs[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        hub.requests.append((self.command, path, self.headers.get("Range", ""), authorization))
        api, files = (
            f"/api/{hub.kind}/{hub.repo}",
            f"{f'/{hub.kind}' * (hub.kind != 'models')}/{hub.repo}/resolve/main/",
        )
        path = path.replace(f"/resolve/{COMMIT}/", "/resolve/main/")
        is_fetch = path.startswith(files)
        if hub.page is not None:
            self.answer(200, hub.page, Content_Type="text/html")
        elif hub.token and authorization != f"Bearer {hub.token}" and (is_fetch or not hub.is_gated):
            self.answer(401, b"{}", X_Error_Code="GatedRepo" if hub.is_gated else "RepoNotFound")
        elif path in (api, f"{api}/revision/main"):
            siblings = [hub.sibling(name) for name in hub.files] if "blobs=true" in address.query.lower() else []
            self.json({"id": hub.repo, "sha": COMMIT, "private": False, "siblings": siblings})
        elif path.startswith(f"{api}/revision/"):
            self.missing("RevisionNotFound")
        elif path.startswith(f"{api}/tree/main"):
            folder = path.removeprefix(f"{api}/tree/main").strip("/")
            tree = hub.tree(folder, "recursive=true" in address.query.lower())
            self.missing("EntryNotFound") if tree is None else self.json(tree)
        elif path.startswith(f"{api}/paths-info/main"):
            paths = parse_qs(body.decode())["paths"]
            self.json([hub.entry(path) for path in paths if path in hub.files])
        elif is_fetch and (name := path.removeprefix(files)) in hub.files:
            self.file(hub, hub.files[name])
        else:
            self.missing("EntryNotFound" if is_fetch else "RepoNotFound")

    do_POST = do_HEAD = do_GET

    def file(self, hub: Hub, data: bytes) -> None:
        span, tag = self.headers.get("Range"), f'"{hashlib.sha256(data).hexdigest()}"'
        if hub.breaks_after is not None and self.command == "GET" and len(data) > _LARGE:
            self.broken(hub, data)
            return
        if not span:
            self.answer(200, data, ETag=tag)
            return
        begin, end = span.removeprefix("bytes=").split("-")
        part = data[int(begin) : int(end or len(data)) + 1]
        self.answer(206, part, Content_Range=f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}")

    def broken(self, hub: Hub, data: bytes) -> None:
        if not hub.breaks_after:
            self.answer(503, b"")
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: hub.breaks_after])
        self.close_connection, hub.breaks_after = True, 0


@contextlib.contextmanager
def running(hub: Hub, *others: Hub) -> Iterator[Hub]:
    """Serve repositories of one hub."""
    hubs = (hub, *others)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hubs": hubs}))
    server.daemon_threads = True
    for one in hubs:
        one.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
