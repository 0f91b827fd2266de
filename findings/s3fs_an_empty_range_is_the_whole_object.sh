#!/usr/bin/env bash
# s3fs 2026.9.0: cat_file(key, start=2, end=2) asks for no byte and gets the whole object.
# It asks for "bytes=2-1". HTTP calls a range whose end lies before its start invalid and has servers ignore it, so the
# answer is 200 with everything; a server that refuses instead makes it an OSError. fsspec's own file systems give b"",
# and so does a slice of bytes. A caption or a label in a tar may well have 0 bytes: who reads members by offset and size
# downloads the archive for each of those, and takes it for the member.
# Seen 2026-11-29, object b"abcde": memory 1..3 b'bc', 2..2 b''; s3fs on moto 5.2.5 1..3 b'bc', 2..2 b'abcde', cat_ranges likewise
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check s3fs==2026.9.0 moto==5.2.5 flask==3.1.3 flask-cors==6.0.5 \
  aiobotocore==3.10.0 boto3==1.43.117 py-partiql-parser==0.6.3 pyyaml==6.0.4
"$folder/venv/bin/python" -W ignore - <<'PY'
import logging

import fsspec
import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
host, port = server.get_host_and_port()
bucket = s3fs.S3FileSystem(
    key="test",
    secret="testtest",
    endpoint_url=f"http://{host}:{port}",
    client_kwargs={"region_name": "us-east-1"},
)
bucket.call_s3("create_bucket", Bucket="bkt")
memory = fsspec.filesystem("memory")
seen = {}
try:
    for name, fs, path in (("memory", memory, "/five"), ("s3fs", bucket, "bkt/five")):
        fs.pipe_file(path, b"abcde")
        seen[name] = [fs.cat_file(path, start=start, end=end) for start, end in ((1, 3), (2, 2), (0, 0))]
    ranges = bucket.cat_ranges(["bkt/five", "bkt/five"], [1, 2], [3, 2])
finally:
    server.stop()
print("bytes 1..3, 2..2, 0..0:", seen, "cat_ranges 1..3, 2..2:", ranges)
assert seen["memory"] == [b"bc", b"", b""], "changed: fsspec's memory"
assert seen["s3fs"] == [b"bc", b"abcde", b"abcde"], "changed: s3fs asks for an empty range in another way"
assert ranges == [b"bc", b"abcde"], "changed: cat_ranges"
PY
echo "as described: s3fs 2026.9.0, moto 5.2.5"
