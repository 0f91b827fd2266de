from __future__ import annotations

import json
import random

import pytest

from pipelines.errors import PlanError
from pipelines.image_formats import LeftOut
from pipelines.planning import repeated_rows
from pipelines.planning.draft import PlanConfig, draft_plan, plan_shards
from pipelines.sources import image_batches
from pipelines.sources.image_batches import FILES, to_batches
from pipelines.types import ImageRef


def row(image: int, number: int | None, **columns: object) -> ImageRef:
    carried = {"n": number, **columns} if number is not None else columns
    return ImageRef(
        image_id=f"{image:03d}", uri=f"/{image}.png", source_columns=json.dumps(carried) if carried else None
    )


@pytest.mark.parametrize("seed", range(6))
def test_rows_of_one_image_are_joined_wherever_they_stand(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_batches, "BATCH_SIZE", 3)  # most images then span batches
    chance = random.Random(seed)
    rows = [row(chance.randrange(1, 12), number, of="all") for number in range(40)]
    left_out = LeftOut()
    with draft_plan(to_batches(rows), PlanConfig(images_per_shard=4), left_out=left_out) as draft:
        planned = [ref for shard in draft.shards() for ref in shard.images]
    expected: dict[str, list[int]] = {}
    for ref in rows:
        expected.setdefault(ref.image_id, []).append(json.loads(ref.source_columns or "")["n"])
    found = {ref.image_id: json.loads(ref.source_columns or "") for ref in planned}
    assert list(found) == sorted(expected)
    assert len(planned) == len(found)
    assert found == {name: {"n": n if len(n) > 1 else n[0], "of": "all"} for name, n in expected.items()}
    assert left_out.repeated == len(rows) - len(expected)


def test_a_column_that_some_rows_lack_keeps_its_place_in_the_list() -> None:
    ((ref,),) = [shard.images for shard in plan_shards([row(1, 1), row(1, None, box=[1, 2])], PlanConfig())]
    assert json.loads(ref.source_columns or "") == {"box": [None, [1, 2]], "n": [1, None]}


def test_rows_without_columns_are_joined_too() -> None:
    left_out = LeftOut()
    with draft_plan(to_batches([row(1, None)] * 3, FILES), PlanConfig(), left_out=left_out) as draft:
        assert (draft.num_images, left_out.repeated) == (1, 2)


def test_more_rows_than_are_carried_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_batches, "BATCH_SIZE", 3)
    monkeypatch.setattr(repeated_rows, "MAX_JOINED_ROWS", 4)
    left_out = LeftOut()
    with draft_plan(to_batches([row(1, number) for number in range(20)]), PlanConfig(), left_out=left_out) as draft:
        ((ref,),) = [shard.images for shard in draft.shards()]
    assert left_out.repeated == 19
    assert len(json.loads(ref.source_columns or "")["n"]) == 4


def test_one_id_for_two_places_is_still_refused() -> None:
    other = ImageRef(image_id="001", uri="/elsewhere/" + "long" * 200)
    with pytest.raises(PlanError, match="stands for both") as refused:
        plan_shards([row(1, 1), row(1, 2), other], PlanConfig())
    assert len(str(refused.value)) < 600


def test_nothing_listed_gives_no_shards() -> None:
    assert plan_shards([], PlanConfig()) == []
