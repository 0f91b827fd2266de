"""A stand-in for S3 that serves a local folder as the bucket ``folder``, to be read, and counts the requests.

It answers GET, with or without a range, HEAD and ListObjectsV2, at once, where S3 takes some 20 ms: what it shows is
how many requests a reader sends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "folder"


class Served:
    """A folder that is served: its endpoint, and the requests so far, as "METHOD key"."""

    def __init__(self, folder: Path) -> None:
        """Serve a folder; see ``served``."""
        self.folder, self.requests = folder, list[str]()
        self.endpoint = ""

    @property
    def options(self) -> dict[str, object]:
        """Storage options of fsspec for it."""
        return {"key": "any", "secret": "any", "endpoint_url": self.endpoint, "skip_instance_cache": True}


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    """Serve a folder until the block ends."""
    held = Served(folder)
    handler = type("Handler", (_Handler,), {"held": held})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        held.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield held
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    held: Served

    def do_HEAD(self) -> None:
        self._answer_object()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if "list-type" not in query:
            self._answer_object()
            return
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        self.held.requests.append(f"LIST {prefix}")
        self._send(200, self._listing(prefix, delimiter), {"Content-Type": "application/xml"})

    def _answer_object(self) -> None:
        key = unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
        self.held.requests.append(f"{self.command} {key}")
        path = self.held.folder / key
        if not path.is_file():
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", {"Content-Type": "application/xml"})
            return
        data, status, headers = path.read_bytes(), 200, {"ETag": f'"{hashlib.md5(key.encode()).hexdigest()}"'}
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(data) - int(last))
            end = min(len(data), int(last) + 1) if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            data, status = data[start:end], 206
        headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        self._send(status, data, headers)

    def _listing(self, prefix: str, delimiter: str) -> bytes:
        paths = (path for path in self.held.folder.rglob("*") if path.is_file())
        keys = sorted(path.relative_to(self.held.folder).as_posix() for path in paths)
        files, folders = list[str](), set[str]()
        for key in (key for key in keys if key.startswith(prefix)):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(f"{prefix}{head}{delimiter}")
            else:
                size = (self.held.folder / key).stat().st_size
                files.append(
                    f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>&quot;0&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
                )
        shared = "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders))
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><KeyCount>{len(files) + len(folders)}</KeyCount><IsTruncated>false</IsTruncated>"
            f"{''.join(files)}{shared}</ListBucketResult>"
        ).encode()

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
