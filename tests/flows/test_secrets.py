"""Credentials stay in the environment: a run on S3, Ray and a Prefect server writes them nowhere."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.storage.store import Store, open_store
from pipelines.table.reader import open_table
from tests.flows.conftest import Ended
from tests.pipelines.sources.test_web_images import web  # noqa: F401
from tests.support.drivers import PrefectServer, driver, run_file
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)


def objects(store: Store) -> dict[str, bytes]:
    """Return what every object says: of Parquet files also the values and metadata, which are compressed in them."""
    found = {name: store.read(name) for name in store.find("")}
    for name in [name for name in found if name.endswith(".parquet")]:
        table = pq.read_table(io.BytesIO(found[name]))
        found[f"{name}: values"] = repr((table.to_pylist(), table.schema.metadata)).encode()
    return found


def files(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def naming(written: dict[str, bytes], *words: str) -> list[str]:
    return sorted({name for name, data in written.items() for word in words if word.encode() in data})


def test_what_a_run_writes_holds_no_credential(
    s3_environment: S3Server,
    prefect: PrefectServer,
    ray: str,
    model: Path,
    photographs: Path,
    fresh_bucket_prefix: str,
    tmp_path: Path,
    web: str,  # noqa: F811
) -> None:
    import ray as ray_module

    output, names = f"{fresh_bucket_prefix}/table", [str(path) for path in sorted(photographs.rglob("*.*"))]
    # Errors are written too: these cannot be fetched.
    names += ["s3://bkt/nowhere/a.jpg", "s3://no-such-bucket/b.jpg", "https://127.0.0.1:9/c.jpg"]
    # A server sends these on to signed addresses, and they answer with errors or lead nowhere.
    names += [f"{web}/to/503", f"{web}/to/bracket"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    arguments = ["run", "--source", tmp_path / "list.txt", "--output", output, "--model", model, "--categories", "car"]
    (tmp_path / "run.toml").write_text("[limits]\nmax_quarantined_share = 1.0\n[source]\nuri = ''\nallow_http = true\n")
    env = {**os.environ, "PREFECT_API_URL": prefect.api_url, "RAY_ADDRESS": ray, "AWS_CANARY": "canary-in-environment"}
    with driver(*arguments, "-c", tmp_path / "run.toml", env=env) as run:
        code, out, err = run.end()
    assert (code, err) == (0, "")

    store = open_store(output)
    rows = open_table(store, "images").to_table().to_pylist()
    assert sorted(filter(None, (row["reason"] for row in rows))) == ["fetch_failed"] * 3 + ["not_found"] * 2
    logs = Path(ray_module._private.worker._global_node.get_logs_dir_path())
    written = objects(store) | files(prefect.home, logs) | {"screen": out.encode()}
    assert len(naming(written, "nowhere/a.jpg")) >= 2, "the search finds what compressed files hold"
    assert naming(written, fresh_bucket_prefix), "the search finds what Prefect holds"
    assert any(Path(name).name.startswith("prefect.db") for name in naming(written, "label-collection"))
    secrets = [s3_environment.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    assert naming(written, *secrets, "canary-in-environment", "canary-signature") == []
    assert run_file(output, "summary.json")["problems"] == []


def test_wrong_credentials_are_refused_and_not_shown(
    s3_environment: S3Server,
    model: Path,
    photographs: Path,
    fresh_bucket_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    cli: Callable[..., Ended],
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-that-is-wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    arguments = ["--source", photographs, "--output", fresh_bucket_prefix, "--model", model, "--categories", "car"]
    ended = cli("run", *arguments, "--runner", "in_process", "--no-prefect")
    s3fs.S3FileSystem.clear_instance_cache()
    assert ended.code == 2
    assert "access denied" in ended.err
    assert "canary" not in ended.out + ended.err
