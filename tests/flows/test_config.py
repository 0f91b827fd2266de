"""RunConfig: what is refused and how, and what makes two runs the same."""

from __future__ import annotations

import re
import tomllib
import traceback
from pathlib import Path
from typing import Any

import pytest

from flows.config import ConfigError, RunConfig, load_config, merge, parse_config, read_values
from flows.run.asked.own_prompts import OwnPrompts
from flows.run.planning import list_collection
from tests.support.containers import parquet_bytes
from tests.support.drivers import REPOSITORY

pytestmark = pytest.mark.timeout(120)

TABLES = {
    *("plan", "label", "pool", "waves", "canary", "limits", "tiles", "relabel", "retry"),
    "exemplars",
    "exemplars_frozen",
}
MINIMAL = {"source": "photos", "output": "table", "model": "folder", "categories": ["car"]}


def changed(**tables: Any) -> dict[str, Any]:
    return merge(MINIMAL, tables)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param({}, ["source: missing", "output: missing"], id="empty"),
        pytest.param(changed(sauce="x"), ["sauce: unknown key"], id="unknown key"),
        pytest.param(changed(pool={"replica": 2}), ["pool.replica: unknown key"], id="unknown nested key"),
        pytest.param(changed(categories=[]), ["phrases, questions, caption, chat, exemplars or prompts"], id="nothing"),
        pytest.param(changed(categories=["car", " "]), ["empty name"], id="blank category"),
        pytest.param(changed(categories=["car", "tree", "car "]), ["named twice: car"], id="doubled category"),
        pytest.param(changed(categories=[1]), ["categories.0"], id="category of another type"),
        pytest.param(changed(task="refseg"), ["task", "genseg_panoptic"], id="unknown task"),
        pytest.param(changed(stuff=["car"]), ["ovseg_panoptic, genseg_panoptic, not ovseg"], id="stuff of instances"),
        pytest.param(changed(task="ovseg_semantic", stuff=["car"]), ["not ovseg_semantic"], id="stuff of semantic"),
        pytest.param(changed(task="ovseg_panoptic", stuff=["sky"]), ["stuff names what is no category: sky"],
                     id="unknown stuff"),
        pytest.param(changed(task="ovseg_panoptic", stuff=["car", "car "]), ["named twice: car"], id="doubled stuff"),
        pytest.param(changed(phrases=["the car", " the car"]), ["phrases are named twice: the car"], id="phrase twice"),
        pytest.param(changed(phrases=[""]), ["phrases holds an empty name"], id="blank phrase"),
        pytest.param(changed(phrases="the car"), ["phrases"], id="phrase that is no list"),
        pytest.param(changed(questions=["Why?"] * 2), ["questions are named twice: Why?"], id="question twice"),
        pytest.param(changed(explain=True), ["explain is set, but there are no questions"], id="nothing to explain"),
        pytest.param(changed(chat=["Why?"] * 2), ["chat are named twice: Why?"], id="chat twice"),
        pytest.param(changed(caption="two"), ["caption"], id="caption of another type"),
        pytest.param(changed(visual_prompts="p.csv"), ["visual_prompts: unknown key"], id="old name of prompts"),
        pytest.param(changed(model={"max_new_tokens": 0}), ["max_new_tokens is 0; allowed: 1"], id="no tokens"),
        pytest.param(changed(source=""), ["source.uri is empty"], id="empty source"),
        pytest.param(changed(source={"uri": "t.parquet", "uri_column": "a", "image_column": "b"}),
                     ["uri_column and image_column are both given"], id="two columns"),
        pytest.param(changed(source={"uri": "hf://datasets/a/b", "storage_options": {"token": "hf_x"}}),
                     ["must not hold credentials (found token)"], id="its token"),
        pytest.param(changed(source={"uri": "c.json", "image_root": "s3://me:hunter2@b/x"}),
                     ["source.image_root carries a user name"], id="its images"),
        pytest.param(changed(source={"uri": "s3://b/x", "storage_options": {"secret": "x"}}),
                     ["must not hold credentials", "AWS_SECRET_ACCESS_KEY"], id="credentials"),
        pytest.param(changed(source={"storage_options": {"client_kwargs": {"aws_secret_access_key": "x"}}}),
                     ["must not hold credentials", "aws_secret_access_key"], id="nested credentials"),
        pytest.param(changed(source="s3://me:hunter2@b/x"), ["source.uri carries a user name"], id="password"),
        pytest.param(changed(output="s3://me:hunter2@b/x"), ["output.uri carries a user name"], id="its output"),
        pytest.param(changed(prompts="s3://me:hunter2@b/x.csv"), ["prompts carries a user name"], id="its prompts"),
        pytest.param(changed(source={"storage_options": {"endpoint_url": "http://me:hunter2@h"}}),
                     ["endpoint_url carries a user name"], id="its endpoint"),
        pytest.param(changed(output={"run_id": "a/b"}), ["run_id 'a/b'", "letters, digits"], id="run id"),
        pytest.param(changed(output={"run_id": ""}), ["run_id ''", "letters, digits"], id="empty run id"),
        pytest.param(changed(output={"run_id": ".."}), ["run_id '..'", "letters, digits"], id="dots"),
        pytest.param(changed(output={"run_id": "x" * 201}), ["run_id has 201 bytes; allowed: 200"], id="long run id"),
        pytest.param(changed(retry={"run_id": "../x"}), ["retry.run_id '../x'", "letters, digits"], id="retried run"),
        pytest.param(changed(output={"run_id": "_1"}), ["run_id '_1'", "begins with '_'"], id="hidden run id"),
        pytest.param(changed(plan={"images_per_shard": 0}), ["plan", "between 1 and 100000, got 0"], id="shard size"),
        pytest.param(changed(plan={"limit": 0}), ["limit must be at least 1"], id="limit"),
        pytest.param(changed(label={"batch_size": 0}), ["batch_size must be positive, got 0"], id="batch size"),
        pytest.param(changed(label={"batch_size": "many"}), ["label.batch_size", "integer"], id="wrong type"),
        pytest.param(changed(tiles={"size": 512, "overlap": 512}), ["tiles: overlap is 512; allowed: 1 to 256"],
                     id="overlap of a whole tile"),
        pytest.param({**MINIMAL, "tiles": {}}, ["tiles.size: missing", "tiles.overlap: missing"], id="empty table"),
        pytest.param(merge({**MINIMAL, "tiles": {}}, {"pool": {"replicas": 2}}), ["tiles.size: missing"],
                     id="empty table and a setting of the command line"),
        pytest.param(changed(pool={"replicas": 0}), ["replicas is 0; allowed: 1 or more"], id="replicas"),
        pytest.param(changed(pool={"num_gpus_per_replica": 1.5}), ["1.5", "whole number"], id="gpus"),
        pytest.param(changed(pool={"runner": "spark"}), ["pool.runner", "in_process"], id="runner"),
        pytest.param(changed(model={"min_score": 1}), ["min_score is 1"], id="score"),
        pytest.param(changed(waves={"max_waves": 0}), ["max_waves must be at least 1"], id="waves"),
        pytest.param(changed(output="memory://x"), ["memory:// lives in one process", "in_process"], id="memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_place(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(values, origin="run.toml")
    assert str(refused.value).startswith("run.toml cannot be used:")
    missing = [word for word in words if word not in str(refused.value)]
    assert not missing, str(refused.value)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config(changed(pool={"replicas": 0}, label={"batch_size": 0}, sauce=1))
    assert len(str(refused.value).splitlines()) == 4


def test_plain_strings_stand_for_the_uri_and_the_path() -> None:
    full = {"source": {"uri": "photos"}, "output": {"uri": "table"}, "model": {"path": "folder"}, "categories": ["car"]}
    assert parse_config(MINIMAL) == parse_config(full)


def test_a_config_survives_the_way_through_json() -> None:
    config = parse_config(changed(pool={"replicas": 3}, label={"decode": {"max_image_pixels": 1000}}))
    assert parse_config(config.to_dict()) == config


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.toml", "source = x", ["cannot be parsed", "line 1"]),
        ("run.yaml", "a: [", ["cannot be parsed", "line 1"]),
        ("run.yaml", "- a\n- b\n", ["table of settings, found list"]),
        ("run.json", "{}", [".toml, .yaml or .yml"]),
        ("run.toml", 'source = "\xe9t\xe9"', ["not UTF-8"]),
    ],
)
def test_files_that_cannot_be_read_as_a_config(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / name)
    assert all(word in str(refused.value) for word in [name, *words]), str(refused.value)


@pytest.mark.parametrize(("name", "text"), [("run.toml", 'source = "x"'), ("run.yaml", "source: x")])
def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    assert read_values(tmp_path / name) == {"source": "x"}


def test_a_key_that_is_given_twice_is_refused_in_yaml_as_in_toml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("source: x\nplan:\n  limit: 1\n  limit: 2\n")
    with pytest.raises(ConfigError, match=r"(?s)'limit' is given twice.*line 4"):
        read_values(tmp_path / "run.yaml")


def test_a_value_where_a_table_belongs_is_refused_also_beside_a_flag() -> None:
    with pytest.raises(ConfigError, match="  plan: "):
        parse_config(merge({**MINIMAL, "plan": 5}, {"plan": {"limit": 3}}))


def test_a_flag_counts_beside_a_table_that_the_file_leaves_empty() -> None:
    assert parse_config(merge({**MINIMAL, "plan": None}, {"plan": {"limit": 3}})).plan.limit == 3
    assert parse_config(merge({**MINIMAL, "plan": None}, {"plan": {"limit": None}})) == parse_config(MINIMAL)


def fingerprint(config: RunConfig, model: str = "0" * 64, prompts: str | None = None) -> dict[str, Any]:
    return config.fingerprint(model_sha256=model, prompts_sha256=prompts)


@pytest.mark.parametrize(
    "tables",
    [
        {"source": "others"},
        {"source": {"uri_column": "path"}},
        {"source": {"image_column": "image"}},
        {"source": {"image_root": "elsewhere"}},
        {"categories": ["tree"]},
        {"categories": ["car", "tree"]},
        {"task": "genseg"},
        {"task": "ovseg_panoptic"},
        {"task": "ovseg_panoptic", "stuff": ["car"]},
        {"phrases": ["the car"]},
        {"questions": ["What moves?"]},
        {"questions": ["What moves?"], "explain": True},
        {"caption": True},
        {"chat": ["What moves?"]},
        {"model": {"max_new_tokens": 5}},
        {"plan": {"limit": 5}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"min_score": 0.3}},
        {"model": {"max_masks_per_image": 7}},
        {"model": {"region_sampling": "all"}},
        {"label": {"decode": {"max_image_pixels": 1000}}},
        {"label": {"decode": {"max_image_bytes": 1000}}},
        {"tiles": {"size": 512, "overlap": 64}},
    ],
)
def test_what_can_change_a_row_changes_the_fingerprint(tables: dict[str, Any]) -> None:
    assert fingerprint(parse_config(changed(**tables))) != fingerprint(parse_config(MINIMAL))


def test_prompts_asked_of_every_image_have_ids_that_say_task_and_text() -> None:
    config = parse_config(
        changed(
            categories=[" car ", "sky"], task="genseg_panoptic", stuff=["sky"], phrases=["the car, on the left"],
            questions=["What moves?"], explain=True, caption=True, chat=["What moves?"],
        )
    )  # fmt: skip
    assert {p.prompt_id: (p.task, p.text, p.category_id, p.is_thing, p.explain) for p in config.common_prompts()} == {
        "genseg_panoptic:car": ("genseg_panoptic", "car", 0, True, False),
        "genseg_panoptic:sky": ("genseg_panoptic", "sky", 1, False, False),
        "refseg:the car, on the left": ("refseg", "the car, on the left", 0, None, False),
        "reaseg:What moves?": ("reaseg", "What moves?", 0, None, True),
        "gcgseg:caption": ("gcgseg", "caption", 0, None, False),
        "chat:What moves?": ("chat", "What moves?", 0, None, False),
    }


def test_the_config_of_the_documentation_and_the_example_can_be_used() -> None:
    document = (REPOSITORY / "docs" / "configuration.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", document, re.DOTALL)
    config = parse_config({**MINIMAL, **tomllib.loads(text)})
    assert {prompt.task for prompt in config.common_prompts()} == {
        "ovseg_panoptic",
        "refseg",
        "reaseg",
        "gcgseg",
        "chat",
    }
    assert load_config(REPOSITORY / "examples" / "label.toml").prompts == "examples/prompts.csv"
    keys = set(re.findall(r"^\| `(\w+)` ", document, re.MULTILINE))
    assert keys >= set(type(config).model_fields) - {"source", "output", "model"} - TABLES
    assert [table for table in TABLES if f"| `{table}." not in document] == []


@pytest.mark.parametrize(
    "asked",
    [{"phrases": ["the car"]}, {"questions": ["Why?"]}, {"caption": True}, {"chat": ["Why?"]}, {"prompts": "p.csv"}],
)
def test_one_thing_to_ask_is_enough(asked: dict[str, Any]) -> None:
    assert parse_config({**MINIMAL, "categories": [], **asked})


def test_weights_and_prompt_table_are_part_of_the_fingerprint() -> None:
    config = parse_config(MINIMAL)
    assert len({str(fingerprint(config, *args)) for args in [("a",), ("b",), ("a", "c"), ("a", "d")]}) == 4


@pytest.mark.parametrize(
    "tables",
    [
        {"output": "elsewhere"},
        {"plan": {"images_per_shard": 7}},
        {"label": {"batch_size": 3, "load_threads": 1, "max_bytes_ahead": 1000, "fetch_timeout_s": 5}},
        {"pool": {"replicas": 9, "num_gpus_per_replica": 0.5, "runner": "in_process"}},
        {"waves": {"max_waves": 3, "retries": 0}},
        {"model": "the same weights in another folder"},
    ],
)
def test_how_the_work_is_cut_and_spread_does_not_change_the_fingerprint(tables: dict[str, Any]) -> None:
    assert fingerprint(parse_config(changed(**tables))) == fingerprint(parse_config(MINIMAL))


def test_every_field_of_the_model_and_of_decoding_was_considered_for_the_fingerprint() -> None:
    # These two are left out unless set: plans of versions that did not have them keep their fingerprint.
    config = parse_config(
        changed(model={"path": "folder", "category_text": "reference"}, label={"decode": {"stretch": "raw"}})
    )
    assert {"model.category_text", "decode.stretch"}.isdisjoint(fingerprint(parse_config(MINIMAL)))
    left_out = {"model.path", "model.device", "model.attn_implementation", "decode.max_working_bytes"}
    fields = {f"model.{name}" for name in type(config.model).model_fields}
    fields |= {f"decode.{name}" for name in type(config.label.decode).model_fields}
    assert fields - set(fingerprint(config)) <= left_out


def test_without_tiles_the_plan_and_the_fingerprint_are_what_they_were() -> None:
    config = parse_config(MINIMAL)
    assert "tiles" not in config.to_dict()
    assert not [name for name in fingerprint(config) if name.startswith("tiles")]
    tiled = parse_config(changed(tiles={"size": 512, "overlap": 64}))
    assert fingerprint(tiled) == {**fingerprint(config), "tiles.size": 512, "tiles.overlap": 64}
    assert parse_config(tiled.to_dict()) == tiled


def test_outer_spaces_of_categories_are_asked_only_as_the_reference_asks_them() -> None:
    asked = {}
    for text in ("clean", "reference"):
        config = parse_config(changed(model={"path": "folder", "category_text": text}, categories=["window "]))
        (prompt,) = config.common_prompts()
        asked[text] = (prompt.text, prompt.category_name, prompt.prompt_id)
    assert asked == {"clean": ("window", "window", "ovseg:window"), "reference": ("window ", "window", "ovseg:window")}


def test_a_source_that_says_nothing_new_has_the_fingerprint_that_it_had() -> None:
    assert {name for name in fingerprint(parse_config(MINIMAL)) if name.startswith("source")} == {
        "source",
        "source.image_id_column",
        "source.uri_column",
    }


def test_what_a_source_says_of_its_images_reaches_the_listing(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"images": [{"file_name": "a.jpg"}]}')
    columns = {"jpg": [b"1"], "png": [b"2"], "url": ["x"], "key": ["k"]}
    (tmp_path / "t.parquet").write_bytes(parquet_bytes(columns))
    table = {"uri": f"{tmp_path}/t.parquet", "image_column": "png", "image_id_column": "key"}
    for source, uri in (
        ({"uri": f"{tmp_path}/c.json", "image_root": "/elsewhere"}, "/elsewhere/a.jpg"),
        (table, f"{tmp_path}/t.parquet#column=png&row=0"),
    ):
        config = parse_config(changed(source=source))
        with list_collection(config, OwnPrompts()) as (plan, *_):
            assert plan.first_uri == uri


def test_one_source_may_be_written_in_several_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forms(*sources: str) -> set[str]:
        return {str(fingerprint(parse_config(changed(source=source)))) for source in sources}

    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    here = forms("photos", "./photos/", "below/../photos", str(tmp_path / "photos"), f"file://{tmp_path}/photos")
    monkeypatch.chdir("below")
    assert forms("../photos") == here != forms("photos")
    assert len(forms("s3://bkt/photos", "s3://bkt/photos/", "s3a://bkt/photos")) == 1
