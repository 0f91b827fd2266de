"""Label, export, correct, import, label again, compare: the whole loop with the included model, on scenes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.drivers import REPOSITORY, Command

SCENES = REPOSITORY / "examples" / "scenes"
CORRECTED = tuple(f"scene-{number:02d}.png" for number in range(4))
SURE = 0.3


def test_what_people_correct_makes_the_table_better_and_every_step_is_told(cli: Command, tmp_path: Path) -> None:
    output, exported, corrected = tmp_path / "labels", tmp_path / "exported.json", tmp_path / "corrected.json"
    truth: dict[str, Any] = json.loads((SCENES / "instances.json").read_text())
    names = ",".join(category["name"] for category in truth["categories"])

    def done(*arguments: object) -> str:
        ended = cli(*arguments)
        assert ended.code == 0, ended
        return ended.out

    def sql(query: str) -> list[Any]:
        with open_database(open_store(str(output))) as database:
            return database.execute(query).fetchall()

    def changes(*arguments: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rows = tmp_path / "changes.parquet"
        figures = done("diff", output, *arguments, "--json", "--to", rows, "--overwrite")
        return json.loads(figures), pq.read_table(rows).to_pylist()

    def ap() -> float:
        figures = done("evaluate", output, "--ground-truth", SCENES / "instances.json", "--json")
        (result,) = json.loads(figures)["results"]
        return float(result["figures"]["AP"])

    how = ("--runner", "in_process", "--no-prefect")
    done("run", "--source", SCENES, "--output", output, "--categories", names, *how)
    done("export", output, "--to", exported)
    corrected.write_text(json.dumps(_with_truth(json.loads(exported.read_text()), truth)))
    before = ap()
    done("import", output, corrected)
    assert ap() > before

    # What the import has done to each mask is what comparing finds.
    told, _ = changes("--kept-iou", 1)
    made = Counter(change for (change,) in sql("SELECT change FROM corrections"))
    total = told["total"]
    assert (total["added"], total["lost"], total["relabeled"]) == (made["added"], made["deleted"], made["relabeled"])
    assert (total["moved"], told["images"]["compared"]) == (made["moved"], len(CORRECTED))
    assert made["added"] + made["moved"] + made["relabeled"] > 0

    # The rest is labeled again, and only what is sure is kept; the answers are those that were there before.
    config = tmp_path / "again.toml"
    config.write_text(f"categories = {json.dumps(names.split(','))}\nmodel.min_score = {SURE}\n")
    others = "image_id NOT IN (SELECT image_id FROM corrections)"
    human = sql("SELECT * FROM annotations WHERE source = 'human' ORDER BY annotation_id")
    dry = done("relabel", output, "--where", others, "--config", config, "--dry-run", *how)
    assert f"{len(truth['images']) - len(CORRECTED)}, " in dry
    done("relabel", output, "--where", others, "--config", config, *how)
    assert sql("SELECT * FROM annotations WHERE source = 'human' ORDER BY annotation_id") == human
    told, rows = changes()
    assert told["images"]["compared"] == len(truth["images"]) - len(CORRECTED)
    assert {row["change"] for row in rows} == {"lost"}
    assert all(row["score_before"] < SURE and row["image_id"] not in CORRECTED for row in rows)
    assert told["total"]["kept"] == told["total"]["masks_after"] > 0


def _with_truth(document: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """Return an exported file as a person would leave it who outlines some images exactly, and looks at no others."""
    wanted: dict[str, list[dict[str, Any]]] = defaultdict(list)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    spelled = {category["id"]: category["name"] for category in truth["categories"]}
    for one in truth["annotations"]:
        wanted[names[one["image_id"]]].append(one)
    numbers = {category["name"]: category["id"] for category in document["categories"]}
    kept = []
    for image in document["images"]:
        if image["file_name"] not in CORRECTED:
            kept += [one for one in document["annotations"] if one["image_id"] == image["id"]]
            continue
        for one in wanted[image["file_name"]]:
            name = spelled[one["category_id"]]
            if name not in numbers:
                numbers[name] = max(numbers.values()) + 1
                document["categories"].append({"id": numbers[name], "name": name})
            kept.append({
                "id": 10_000 + one["id"], "image_id": image["id"], "category_id": numbers[name],
                "segmentation": one["segmentation"], "bbox": one["bbox"], "area": one["area"], "iscrowd": 0,
            })  # fmt: skip
    return {**document, "annotations": kept}
