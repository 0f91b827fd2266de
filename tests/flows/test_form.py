"""RunConfig as the form of a deployment in Prefect's UI, and what becomes of wrong values there."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.drivers import PrefectServer

pytestmark = pytest.mark.timeout(120, func_only=True)


@pytest.fixture(scope="module")
def schema(_environment: None) -> dict[str, Any]:
    """What Prefect makes of the flow's parameters."""
    from prefect.utilities.callables import parameter_schema

    from flows.label_collection import label_collection

    return parameter_schema(label_collection).model_dump()


def test_every_field_of_the_form_says_what_it_is_for(schema: dict[str, Any]) -> None:
    silent = [
        f"{name}.{field}"
        for name, settings in schema["definitions"].items()
        for field, words in settings["properties"].items()
        if not words.get("description", "").strip()
    ]
    assert silent == []
    assert {"RunConfig", "PoolConfig", "DecodeLimits"} < set(schema["definitions"])


def test_the_words_of_the_form_are_those_of_the_docstrings(schema: dict[str, Any]) -> None:
    run = schema["definitions"]["RunConfig"]
    assert run["description"].startswith("One labeling run")
    assert "Attributes" not in json.dumps(schema)
    assert run["properties"]["chat"]["description"] == "Questions asked of every image and answered in words alone."
    # One line of the docstring for two fields, and one of several lines.
    source = schema["definitions"]["SourceConfig"]["properties"]
    assert source["uri_column"]["description"] == source["image_id_column"]["description"]
    limit = schema["definitions"]["DecodeLimits"]["properties"]["max_image_bytes"]["description"]
    assert limit == "Encoded size. A collection's odd multi-gigabyte file would otherwise fill a fetch thread's memory."


def test_the_form_has_defaults_choices_and_what_is_required(schema: dict[str, Any]) -> None:
    run = schema["definitions"]["RunConfig"]
    assert run["required"] == ["source", "output"]
    assert run["properties"]["task"]["default"] == "ovseg"
    assert "genseg_panoptic" in run["properties"]["task"]["enum"]
    pool = schema["definitions"]["PoolConfig"]["properties"]
    assert (pool["runner"]["enum"], pool["replicas"]["default"]) == (["auto", "ray", "processes", "in_process"], 1)
    assert all(not settings["additionalProperties"] for settings in schema["definitions"].values())


StartRun = Callable[..., dict[str, Any]]


@pytest.fixture
def start_run(prefect: PrefectServer) -> Iterator[StartRun]:
    """Ask the server for a flow run of a deployment of the flow, with a config."""
    from prefect.client.orchestration import get_client

    from flows.label_collection import label_collection

    deployment_id = str(label_collection.to_deployment("form").apply())

    def start(**config: Any) -> dict[str, Any]:
        return prefect.ask(f"deployments/{deployment_id}/create_flow_run", {"parameters": {"config": config}})

    yield start
    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment_id)


GOOD: dict[str, Any] = {"source": {"uri": "photos"}, "output": {"uri": "out"}, "categories": ["car"]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "ovsegg"}, "'ovsegg' is not one of ['ovseg', 'ovseg_semantic'"),
        ({"pool": {"replicas": "many"}}, "'many' is not of type 'integer'"),
        ({"pool": {"replica": 2}}, "'replica' was unexpected"),
        ({"source": "photos"}, "'photos' is not of type 'object'"),
        ({"source": {}}, "'uri' is a required property"),
    ],
)
def test_a_value_of_the_wrong_kind_makes_no_flow_run(start_run: StartRun, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        start_run(**GOOD | wrong)
    assert refused.value.code == 409
    assert message in json.loads(refused.value.read())["detail"]


def test_a_value_out_of_range_fails_the_flow_run_before_its_first_step(
    start_run: StartRun, prefect: PrefectServer
) -> None:
    from prefect.exceptions import ParameterTypeError
    from prefect.flow_engine import load_flow_run, run_flow

    from flows.label_collection import label_collection

    started = start_run(**GOOD | {"pool": {"replicas": 0}, "output": {"uri": "out"}})
    with pytest.raises(ParameterTypeError, match="replicas is 0; allowed: 1 or more"):
        run_flow(label_collection, flow_run=load_flow_run(started["id"]))
    (ended,) = prefect.ask("flow_runs/filter", {"flow_runs": {"id": {"any_": [started["id"]]}}})
    assert ended["state_type"] == "FAILED"
    assert "replicas is 0; allowed: 1 or more" in ended["state"]["message"]
    assert prefect.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [started["id"]]}}}) == []
