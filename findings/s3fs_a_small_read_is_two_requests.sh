#!/usr/bin/env bash
# s3fs 2026.9.0: every cat_file of a whole object sends a HEAD before its GET, and every info of a missing name a listing.
# It asks for the size to decide whether to read in pieces of 50 MiB, so an object of 100 bytes takes two round trips; who
# reads thousands of small objects waits twice as long and pays for twice the requests. max_concurrency=1 leaves the HEAD
# out. For a name that nothing has, info lists what is below it, since it may be a folder; a HEAD alone has no method.
# Seen 2026-11-30: read HEAD GET; read with max_concurrency=1 GET; info of a missing name HEAD LIST
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check s3fs==2026.9.0
"$folder/venv/bin/python" - <<'PY'
import http.server
import threading

import s3fs

asked = []
EMPTY = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount></ListBucketResult>'


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        is_list = "list-type" in self.path
        asked.append("LIST" if is_list else self.command)
        is_there = is_list or self.path.split("?")[0] == "/bucket/there"
        body = EMPTY if is_list else b"x" * 100 if is_there else b""
        self.send_response(200 if is_there else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = answer

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
options = {"key": "a", "secret": "b", "endpoint_url": f"http://127.0.0.1:{server.server_port}"}


def requests(do):
    asked.clear()
    try:
        do()
    except FileNotFoundError:
        pass
    return " ".join(asked)


found = {
    "read": requests(lambda: s3fs.S3FileSystem(**options).cat_file("bucket/there")),
    "read with max_concurrency=1": requests(lambda: s3fs.S3FileSystem(**options, max_concurrency=1).cat_file("bucket/there")),
    "info of a missing name": requests(lambda: s3fs.S3FileSystem(**options).info("bucket/missing")),
}
print("; ".join(f"{what} {sent}" for what, sent in found.items()))
assert list(found.values()) == ["HEAD GET", "GET", "HEAD LIST"], "changed: other requests are sent"
PY
echo "as described: s3fs 2026.9.0"
