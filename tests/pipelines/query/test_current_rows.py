"""Which rows are current: the views against a plain model of the rule, over outputs of every kind of history."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.layout import KINDS, commit_name, data_name, run_folder
from pipelines.planning.fingerprint import fingerprint_digest
from pipelines.query.database import open_database
from pipelines.storage.store import Store, open_store
from pipelines.table.commits import parquet_bytes
from pipelines.table.schema import annotations_table, images_table
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import (
    MAP_TASKS,
    Caption,
    ImagePrediction,
    ImageRef,
    Prompt,
    Reason,
    RejectedPrompt,
    Status,
)
from tests.support.documents import change_document
from tests.support.labeled import box, mask, named, region

CAT, DOG = named("ovseg", "cat", "dog")
SKY, SEA = named("ovseg_semantic", "sky", "sea")
CHAT = Prompt(prompt_id="chat:0", task="chat", text="why?", category_id=0, category_name="why?")
POINT = region("vgdseg", "p1", "point")
PROMPTS = (CAT, DOG, SKY, SEA, CHAT, POINT)


@dataclass(frozen=True)
class Labeled:
    """What a run made of an image: for each prompt how many masks, -1 if it could not be asked; None: quarantined."""

    image_id: str
    version: int | None
    asked: dict[str, int] | None
    wanted: tuple[str, ...] = ()


def units(prompts: Sequence[str]) -> set[str]:
    tasks = {prompt: prompt.split(":")[0] for prompt in prompts}
    return {task if task in MAP_TASKS else prompt for prompt, task in tasks.items()}


def unit(prompt_id: str) -> str:
    return next(iter(units([prompt_id])))


# --- an output by hand ---


def prediction(one: Labeled) -> ImagePrediction:
    known = {prompt.prompt_id: prompt for prompt in PROMPTS}
    ref = ImageRef(image_id=one.image_id, uri=f"/p/{one.image_id}", version=one.version or 1)
    if one.asked is None:
        wanted = tuple(known[name] for name in one.wanted)
        failed = {"status": Status.QUARANTINED, "reason": Reason.TRUNCATED, "stage": "decode", "error": "cut"}
        return ImagePrediction(ref=ref, prompts=wanted, **failed)
    asked = tuple(known[name] for name, count in one.asked.items() if count >= 0)
    masks = tuple(mask(p, box(n, n, 2, 2)) for p in asked if p != CHAT for n in range(one.asked[p.prompt_id]))
    said = tuple(Caption(prompt=p, text="so") for p in asked if p == CHAT and one.asked[p.prompt_id])
    rejected = tuple(
        RejectedPrompt(row=0, prompt_id=name, image=one.image_id, reason="outside")
        for name, count in one.asked.items()
        if count < 0
    )
    return ImagePrediction(
        ref=ref,
        status=Status.of_answer(asked, masks, said),
        masks=masks,
        captions=said,
        prompts=asked,
        rejected=rejected,
        size_hw=(10, 10),
    )


def write_run(
    store: Store, run_id: str, sequence: int, labeled: Sequence[Labeled], fingerprint: dict[str, Any] | None = None
) -> None:
    """Commit a run as one shard; rows without a version are those of an earlier schema."""
    predictions = [prediction(one) for one in labeled]
    old = any(one.version is None for one in labeled)
    ids = {"run_id": run_id, "shard_id": "shard-00000", "attempt": "d1-0"}
    tables = {"annotations": annotations_table(predictions, **ids), "images": images_table(predictions, **ids)}
    files = {}
    for kind in KINDS:
        table = tables[kind]
        if old and kind == "images":
            rows = [
                {
                    **row,
                    "image_version": None,
                    "tasks": None,
                    "per_prompt": [] if row["status"] == "quarantined" else row["per_prompt"],
                }
                for row in table.to_pylist()
            ]
            table = type(table).from_pylist(rows, schema=table.schema)
        data, name = parquet_bytes(table, kind, ids), data_name(kind, run_id, "shard-00000", "d1-0")
        store.write(name, data)
        digest = hashlib.sha256(data).hexdigest()
        files[kind] = DataFile(name=name, num_bytes=len(data), sha256=digest, rows=table.num_rows)
    counts = {p.status.value: 0 for p in predictions}
    for p in predictions:
        counts[p.status.value] += 1
    commit = ShardCommit(**ids, **files, status_counts=counts, reason_counts={})
    store.create(commit_name(run_id, "shard-00000"), commit.to_json())
    plan = {"format": 2, "schema_version": 3, "run_id": run_id, "sequence": sequence, "num_images": len(labeled)}
    plan |= {"num_bytes": 0, "num_shards": 1, "parts": [{"name": "plan-d1-00000.parquet", "num_shards": 1}]}
    fingerprint = fingerprint or {}
    plan |= {"fingerprint": fingerprint, "fingerprint_sha256": fingerprint_digest(fingerprint)}
    plan |= {"facts": {"planned_at": f"2026-01-{sequence:02d}"}}
    store.create(f"{run_folder(run_id)}/plan.json", json.dumps(plan).encode())


# --- the rule, plainly ---


# Answers of the first are replaced by those of the first and of the second alone; those of the second as any model's.
IMPORT, OVER = SPECIAL = ({"import": {"format": "coco"}}, {"over_corrections": True})


def expected(runs: Sequence[Sequence[Labeled]], special: Mapping[int, Any] | None = None) -> dict[str, Any]:
    """Return what the views are to show: annotations, coverage and images, by image."""
    rows: dict[str, list[tuple[int, Labeled]]] = defaultdict(list)
    for place, run in enumerate(runs):
        for one in run:
            rows[one.image_id].append((place, one))
    found: dict[str, Any] = {}
    for image_id, history in rows.items():
        newest = max(one.version or 1 for _, one in history)
        live = [(place, one) for place, one in history if (one.version or 1) == newest]
        found[image_id] = image_now(live, special or {})
    return found


def entries(one: Labeled) -> dict[str, int | None]:
    """Return how many masks each prompt of a row has; None where it is unanswered."""
    if one.asked is None:
        return {} if one.version is None else dict.fromkeys(one.wanted)
    return {name: None if count < 0 else 0 if name == CHAT.prompt_id else count for name, count in one.asked.items()}


def image_now(live: Sequence[tuple[int, Labeled]], special: Mapping[int, Any]) -> dict[str, Any]:
    ranks: dict[str, tuple[bool, bool, int]] = {}
    for place, one in live:
        # What a run over corrections has answered since is no longer a person's.
        over = [
            {unit(prompt) for prompt, count in entries(other).items() if count is not None}
            - {unit(prompt) for prompt, count in entries(other).items() if count is None}
            for later, other in live
            if later > place and special.get(later) == OVER
        ]
        for name in units(list(entries(one))):
            is_firm = special.get(place) == IMPORT and not any(name in units_of for units_of in over)
            is_answer = None not in [count for prompt, count in entries(one).items() if unit(prompt) == name]
            ranks[name] = max(ranks.get(name, (False, False, -1)), (is_answer, is_answer and is_firm, place))
    holder = {name: place for name, (_, _, place) in ranks.items()}
    now = {
        (prompt, place): count
        for place, one in live
        for prompt, count in entries(one).items()
        if holder[unit(prompt)] == place
    }
    kept = [(place, one) for place, one in live if not entries(one) or place in {place for _, place in now}]
    failed = [place for place, one in kept if one.asked is None]
    unanswered = [place for place in failed if any(held == place for _, held in now)]
    is_quarantined = bool(unanswered) or len(failed) == len(kept)
    said = any(one.asked and one.asked.get(CHAT.prompt_id, 0) > 0 and (CHAT.prompt_id, p) in now for p, one in kept)
    masks = sum(count or 0 for count in now.values())
    good = [place for place, one in kept if one.asked is not None] or [place for place, _ in kept]
    return {
        "coverage": {(prompt, f"run-{place}", count) for (prompt, place), count in now.items()},
        "masks": {(prompt, f"run-{place}"): count for (prompt, place), count in now.items() if count},
        "status": "quarantined" if is_quarantined else "ok" if masks or said else status_without(now),
        "num_annotations": masks,
        "says": said,
        "run_id": f"run-{max(unanswered or failed) if is_quarantined else max(good)}",
        "reason": "truncated" if is_quarantined else None,
    }


def status_without(now: dict[tuple[str, int], int | None]) -> str:
    """Return the status of an image without masks and words: was anything asked of it that could have been there?"""
    of_masks = [count for (prompt, _), count in now.items() if prompt != CHAT.prompt_id]
    return "empty" if any(count is not None for count in of_masks) else "not_asked"


def shown(store: Store) -> dict[str, Any]:
    """Return what the views show."""
    database = open_database(store)
    found: dict[str, Any] = {}
    images = database.sql("SELECT image_id, status, num_annotations, captions, run_id, reason, per_prompt FROM images")
    for image_id, status, count, captions, run_id, reason, per_prompt in images.fetchall():
        assert image_id not in found
        found[image_id] = {
            "coverage": set(),
            "masks": {},
            "status": status,
            "num_annotations": count,
            "says": bool(captions),
            "run_id": run_id,
            "reason": reason,
        }
        found[image_id]["entries"] = sorted((entry["prompt_id"], entry["n"] or 0) for entry in per_prompt)
    for image_id, prompt_id, run_id, n in database.sql(
        "SELECT image_id, prompt_id, run_id, n FROM coverage"
    ).fetchall():
        assert (prompt_id, run_id, n) not in found[image_id]["coverage"]
        found[image_id]["coverage"].add((prompt_id, run_id, n))
    for one in found.values():
        assert one.pop("entries") == sorted((prompt, n or 0) for prompt, _, n in one["coverage"])
    masks = database.sql("SELECT image_id, prompt_id, run_id, count(*) FROM annotations GROUP BY ALL").fetchall()
    for image_id, prompt_id, run_id, count in masks:
        found[image_id]["masks"][prompt_id, run_id] = count
    database.close()
    return found


# --- the test ---

names = st.sampled_from([prompt.prompt_id for prompt in PROMPTS])


@st.composite
def histories(draw: st.DrawFn) -> list[list[Labeled]]:
    """Up to four runs over up to four images, each of a version that never goes back."""
    versions = dict.fromkeys("abcd", 1)
    runs = []
    for _ in range(draw(st.integers(1, 4))):
        is_old = all(version == 1 for version in versions.values()) and draw(st.booleans())
        run = []
        for image_id in sorted(draw(st.sets(st.sampled_from("abcd"), min_size=1))):
            if not is_old:
                versions[image_id] += draw(st.sampled_from((0, 0, 1)))
            version = None if is_old else versions[image_id]
            wanted = set(draw(st.sets(names)))
            if wanted & {SKY.prompt_id, SEA.prompt_id}:
                wanted |= draw(st.sampled_from(({SKY.prompt_id}, {SKY.prompt_id, SEA.prompt_id})))
            if draw(st.integers(0, 3)) == 0:
                run.append(Labeled(image_id, version, None, tuple(sorted(wanted))))
                continue
            least = {POINT.prompt_id: -1}
            asked = {name: draw(st.integers(least.get(name, 0), 2)) for name in sorted(wanted)}
            run.append(Labeled(image_id, version, asked))
        runs.append(run)
    return runs


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(runs=histories(), special=st.dictionaries(st.integers(0, 3), st.sampled_from(SPECIAL), max_size=3))
@pytest.mark.slow
def test_the_views_show_what_the_rule_says(
    runs: list[list[Labeled]], special: dict[int, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = open_store(str(tmp_path_factory.mktemp("output")))
    for place, run in enumerate(runs):
        write_run(store, f"run-{place}", place + 1, run, special.get(place))
    assert shown(store) == expected(runs, special)


def test_what_a_person_answered_is_replaced_by_a_person_or_by_a_run_that_is_asked_to(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "output"))
    runs = [[Labeled("a", 1, {"ovseg:cat": count, "ovseg:dog": count})] for count in (2, 1, 2)]
    runs[1] = [Labeled("a", 1, {"ovseg:cat": 0})]
    for place, run in enumerate(runs):
        write_run(store, f"run-{place}", place + 1, run, IMPORT if place == 1 else None)
    found = shown(store)
    assert found == expected(runs, {1: IMPORT})
    assert found["a"]["coverage"] == {("ovseg:cat", "run-1", 0), ("ovseg:dog", "run-2", 2)}
    write_run(store, "run-3", 4, runs[2], OVER)
    assert shown(store)["a"]["coverage"] == {("ovseg:cat", "run-3", 2), ("ovseg:dog", "run-3", 2)}
    write_run(store, "run-4", 5, runs[0])  # models again: what was to replace corrections is no correction itself
    assert shown(store)["a"]["coverage"] == {("ovseg:cat", "run-4", 2), ("ovseg:dog", "run-4", 2)}


def one_image(tmp_path: Path, *runs: Labeled) -> dict[str, Any]:
    store = open_store(str(tmp_path / "output"))
    for place, one in enumerate(runs):
        write_run(store, f"run-{place}", place + 1, [one])
    found = shown(store)
    assert found == expected([[one] for one in runs])
    return dict(found["a"])


def test_the_last_answer_replaces_those_before(tmp_path: Path) -> None:
    now = one_image(tmp_path, Labeled("a", 1, {"ovseg:cat": 2, "ovseg:dog": 1}), Labeled("a", 1, {"ovseg:cat": 0}))
    assert now["coverage"] == {("ovseg:cat", "run-1", 0), ("ovseg:dog", "run-0", 1)}
    assert (now["num_annotations"], now["status"]) == (1, "ok")


def test_no_answer_replaces_none_and_what_needs_a_retry_is_found_as_quarantined(tmp_path: Path) -> None:
    failed = Labeled("a", 1, None, ("ovseg:cat", "ovseg:dog"))
    now = one_image(tmp_path, Labeled("a", 1, {"ovseg:cat": 2}), failed)
    assert now["coverage"] == {("ovseg:cat", "run-0", 2), ("ovseg:dog", "run-1", None)}
    assert (now["num_annotations"], now["status"], now["run_id"]) == (2, "quarantined", "run-1")


def test_a_quarantined_image_whose_prompts_have_been_answered_is_not_quarantined(tmp_path: Path) -> None:
    now = one_image(tmp_path, Labeled("a", 1, {"ovseg:cat": 2}), Labeled("a", 1, None, ("ovseg:cat",)))
    assert (now["status"], now["reason"], now["run_id"]) == ("ok", None, "run-0")


def test_of_an_image_that_changed_only_what_was_asked_since_is_current(tmp_path: Path) -> None:
    now = one_image(tmp_path, Labeled("a", None, {"ovseg:cat": 2, "ovseg:dog": 1}), Labeled("a", 2, {"ovseg:cat": 1}))
    assert now["coverage"] == {("ovseg:cat", "run-1", 1)}


def test_all_categories_of_a_map_are_replaced_together(tmp_path: Path) -> None:
    both = Labeled("a", 1, {"ovseg_semantic:sky": 1, "ovseg_semantic:sea": 1, "ovseg:cat": 1})
    now = one_image(tmp_path, both, Labeled("a", 1, {"ovseg_semantic:sky": 1}))
    assert now["coverage"] == {("ovseg_semantic:sky", "run-1", 1), ("ovseg:cat", "run-0", 1)}


def test_old_rows_of_quarantined_images_are_not_lost(tmp_path: Path) -> None:
    old = Labeled("a", None, None, ("ovseg:cat",))
    assert one_image(tmp_path / "alone", old)["status"] == "quarantined"
    assert one_image(tmp_path / "again", old, Labeled("a", None, None, ("ovseg:cat",)))["run_id"] == "run-1"
    assert one_image(tmp_path / "retried", old, Labeled("a", None, {"ovseg:cat": 1}))["status"] == "ok"


def test_plans_without_a_number_are_ordered_by_their_time(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "output"))
    for run_id, day, count in (("b", 1, 1), ("a", 2, 2)):
        write_run(store, run_id, day, [Labeled("a", None, {"ovseg:cat": count})])
        change_document(store, f"{run_folder(run_id)}/plan.json", {"sequence": 0})
    assert shown(store)["a"]["masks"] == {("ovseg:cat", "a"): 2}
