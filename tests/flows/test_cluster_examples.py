"""What examples/ holds for a cluster: the manifest against our command line, the IAM policy against a real run."""

from __future__ import annotations

import fnmatch
import json
import secrets
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flows import cli
from flows.config import parse_config
from pipelines.storage.store import open_store
from pipelines.table.leftovers import vacuum
from tests.reliability.small_run import RUN, SmallRun, run
from tests.support.drivers import REPOSITORY
from tests.support.fakes import write_images
from tests.support.seaweed import S3Server

Manifest = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """The manifest's documents by kind."""
    documents = yaml.safe_load_all((REPOSITORY / "examples/kuberay-job.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pods(manifest: Manifest) -> dict[str, dict[str, Any]]:
    cluster = manifest["RayJob"]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"]["spec"], "worker": workers["template"]["spec"]}


def config_of(manifest: Manifest) -> Any:
    return parse_config(tomllib.loads(manifest["ConfigMap"]["data"]["label.toml"]))


def test_the_manifest_is_of_the_kinds_that_kuberay_knows(manifest: Manifest) -> None:
    assert set(manifest) == {"ServiceAccount", "ConfigMap", "RayJob"}
    assert manifest["RayJob"]["apiVersion"] == "ray.io/v1"
    assert manifest["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_the_entrypoint_is_a_command_line_of_ours(manifest: Manifest) -> None:
    program, command, *arguments = shlex.split(manifest["RayJob"]["spec"]["entrypoint"])
    assert program == "xsam-label"
    main = typer.main.get_command(cli.app)
    parsed = main.commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
    assert parsed.params["prefect"] is False
    mounts = {mount["name"]: mount["mountPath"] for mount in pods(manifest)["head"]["containers"][0]["volumeMounts"]}
    assert parsed.params["config"] == Path(mounts["config"], "label.toml")


def test_every_pod_has_the_config_the_model_and_the_role(manifest: Manifest) -> None:
    for pod in pods(manifest).values():
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"name": "config", "configMap": {"name": manifest["ConfigMap"]["metadata"]["name"]}} in pod["volumes"]
        assert pod["serviceAccountName"] == manifest["ServiceAccount"]["metadata"]["name"]
        model = Path(config_of(manifest).model.path)
        assert any(model.is_relative_to(m["mountPath"]) for m in container["volumeMounts"] if m["name"] == "models")


def test_the_workers_hold_the_replicas_that_the_config_asks_for(manifest: Manifest) -> None:
    config = config_of(manifest)
    assert config.incremental
    assert config.pool.chosen_runner == "ray"
    assert config.pool.ray_address is None  # a Ray job has RAY_ADDRESS
    cluster = manifest["RayJob"]["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    limits = pods(manifest)["worker"]["containers"][0]["resources"]["limits"]
    assert (
        workers["replicas"] * int(limits["nvidia.com/gpu"]) == config.pool.replicas * config.pool.num_gpus_per_replica
    )
    assert int(limits["cpu"]) >= config.pool.num_cpus_per_replica
    stop_wait_s = {e["name"]: e["value"] for e in pods(manifest)["head"]["containers"][0]["env"]}[
        "RAY_JOB_STOP_WAIT_TIME_S"
    ]
    assert float(stop_wait_s) > config.pool.drain_grace_s


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    return json.loads((REPOSITORY / "examples/iam-policy.json").read_text())


def test_the_policy_is_about_the_buckets_of_the_manifest(manifest: Manifest, policy: dict[str, Any]) -> None:
    config = config_of(manifest)
    named = {statement["Resource"].partition(":::")[2].partition("/")[0] for statement in policy["Statement"]}
    assert named == {uri.split("/")[2] for uri in (config.source.uri, config.output.uri)}


# What AWS asks for each request of the S3 API.
ACTIONS = {
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
}


def allowed(policy: dict[str, Any], action: str, bucket: str, key: str) -> bool:
    """Say whether the policy allows an action on a key, or on a listing of a prefix."""
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        asked = f"arn:aws:s3:::{bucket}" + ("" if action == "s3:ListBucket" else f"/{key}")
        prefixes = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
        if (
            action in actions
            and fnmatch.fnmatchcase(asked, statement["Resource"])
            and (action != "s3:ListBucket" or any(fnmatch.fnmatchcase(key, prefix) for prefix in prefixes))
        ):
            return True
    return False


def test_the_policy_allows_all_that_a_run_asks_of_s3_and_nothing_else(
    policy: dict[str, Any], s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aiobotocore.client import AioBaseClient

    # One bucket stands for both: what lies below photos/ is the policy's source, below labels/ its output.
    folder = secrets.token_hex(4)
    write_images(tmp_path, 5)
    for path in sorted(tmp_path.iterdir()):
        open_store(f"s3://bkt/{folder}/photos/2026").write(path.name, path.read_bytes())
    asked: set[tuple[str, str, str]] = set()
    really = AioBaseClient._make_api_call

    async def record(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
        key = str(parameters.get("Key", parameters.get("Prefix", "")))
        bucket, _, rest = key.removeprefix(f"{folder}/").partition("/")
        asked.add((operation, bucket, rest))
        return await really(client, operation, parameters)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", record)
    output = f"s3://bkt/{folder}/labels/2026"
    small = SmallRun(source=f"s3://bkt/{folder}/photos/2026/", output=output)
    assert run(small).ok
    assert run(small).labelled_now == 0
    open_store(output).write(f"images/{RUN}/shard-00000-dead-0.parquet", b"left over")
    vacuum(open_store(output), RUN)

    assert {"ListObjectsV2", "GetObject", "PutObject"} <= {operation for operation, _, _ in asked}
    refused = [request for request in asked if not allowed(policy, ACTIONS[request[0]], *request[1:])]
    assert refused == []
    granted = {a for s in policy["Statement"] for a in ([s["Action"]] if isinstance(s["Action"], str) else s["Action"])}
    # What an upload in parts needs when it fails: files of more than 100 MiB.
    assert granted - {ACTIONS[operation] for operation, _, _ in asked} == {"s3:AbortMultipartUpload"}
