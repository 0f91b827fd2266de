"""A stand-in for S3 that answers ListObjectsV2 with made-up keys, in order, a thousand a page; a process of its own.

``python -m benchmarks.listing_server COUNT`` prints its endpoint and serves until its input ends. It answers at once,
where S3 takes some 100 ms a page: what planning adds to a listing is never flattered by it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

_KEYS_PER_PAGE = 1000
_ETAG = "&quot;9b2cf535f27731c974343645a3985328&quot;"


@contextmanager
def served(count: int) -> Iterator[str]:
    """Serve a bucket of so many images, and yield the endpoint."""
    command = [sys.executable, "-m", "benchmarks.listing_server", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def page(prefix: str, first: int, count: int) -> bytes:
    """Return the page of keys that begins with this number."""
    last = min(first + _KEYS_PER_PAGE, count)
    keys = "".join(
        f"<Contents><Key>{prefix}{number // 1000:06d}/IMG_{number:09d}.jpg</Key><LastModified>2026-01-01T00:00:00.000Z"
        f"</LastModified><ETag>{_ETAG}</ETag><Size>{100_000 + number % 1000}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(first, last)
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>" * (last < count)
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>photos</Name><KeyCount>{last - first}</KeyCount>{more or '<IsTruncated>false</IsTruncated>'}{keys}"
        "</ListBucketResult>"
    ).encode()


def serve(count: int) -> None:
    """Serve until the input ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            body = page(query.get("prefix", [""])[0], int(query.get("continuation-token", ["0"])[0]), count)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
