"""A Hugging Face Hub for the tests, as small as ``hf://`` needs it: one dataset on the loopback address."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What it holds, and what it was asked.

    Attributes:
        repo: the dataset, e.g. "user/name".
        files: by path.
        token: what it demands, if anything.
        endpoint: its address.
        requests: method, path, range and authorization of each request.
    """

    repo: str
    files: dict[str, bytes]
    token: str | None = None
    endpoint: str = ""
    requests: list[tuple[str, str, str, str]] = field(default_factory=list)

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the API describes it."""
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

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
    hub: Hub
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
        hub, address = self.hub, urlsplit(self.path)
        path = unquote(address.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        authorization = self.headers.get("Authorization", "")
        hub.requests.append((self.command, path, self.headers.get("Range", ""), authorization))
        api, files = f"/api/datasets/{hub.repo}", f"/datasets/{hub.repo}/resolve/main/"
        if hub.token and authorization != f"Bearer {hub.token}":
            self.answer(401, b"{}", X_Error_Code="RepoNotFound")
        elif path in (api, f"{api}/revision/main"):
            self.json({"id": hub.repo, "sha": COMMIT, "private": False, "siblings": []})
        elif path.startswith(f"{api}/tree/main"):
            folder = path.removeprefix(f"{api}/tree/main").strip("/")
            tree = hub.tree(folder, "recursive=true" in address.query.lower())
            self.missing("EntryNotFound") if tree is None else self.json(tree)
        elif path.startswith(f"{api}/paths-info/main"):
            paths = parse_qs(body.decode())["paths"]
            self.json([hub.entry(path) for path in paths if path in hub.files])
        elif path.startswith(files) and (name := path.removeprefix(files)) in hub.files:
            self.file(hub.files[name])
        else:
            self.missing("EntryNotFound" if path.startswith(files) else "RepoNotFound")

    do_POST = do_HEAD = do_GET

    def file(self, data: bytes) -> None:
        span = self.headers.get("Range")
        if not span:
            self.answer(200, data)
            return
        begin, end = span.removeprefix("bytes=").split("-")
        part = data[int(begin) : int(end or len(data)) + 1]
        self.answer(206, part, Content_Range=f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}")


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serve a hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Answer,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
