"""Two sides are compared mask by mask: what has become of each, by prompt, and nothing is left out without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.diff.change_table import SCHEMA
from pipelines.diff.comparison import Comparison, compare_sides
from pipelines.diff.sides import Chosen
from pipelines.diff.tally import OF_SINGLE_IMAGES
from pipelines.errors import DamagedError, SourceError
from pipelines.masks import rle
from pipelines.storage.store import open_store
from pipelines.types import MaskPrediction, Rle
from tests.support.labeled import box, mask, named, region, write_output

CAT, DOG, COW = named("ovseg", "cat", "dog", "cow")
BOTH = (CAT, DOG)
Found = Mapping[str, Sequence[MaskPrediction] | None]


def diff(
    output: Path, *, other: Path | None = None, runs: tuple[str | None, str | None] = ("a", "b"), **how: Any
) -> Any:
    """Compare, and return the figures and the rows of the table of changes."""
    before = Chosen(store=open_store(str(output)), run_id=runs[0])
    after = Chosen(store=open_store(str(other or output)), run_id=runs[1])
    place = output.parent / f"place-{len(list(output.parent.iterdir()))}"
    place.mkdir()
    found = compare_sides(before, after, place, table=place / "t.parquet", **how)
    return found, pq.read_table(place / "t.parquet")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def write(output: Path, run_id: str, found: Found, common: Sequence[Any] = BOTH, **more: Any) -> None:
    write_output(output, found, common=common, run_id=run_id, **more)


def counts(found: Comparison, prompt_id: str) -> dict[str, int]:
    return {one.value: number for one, number in found.prompts[prompt_id].counts.items() if number}


def check_identities(found: Comparison) -> None:
    """Every mask of each side is counted once."""
    for tally in (*found.prompts.values(), found.total):
        told = tally.to_dict()
        both = told["kept"] + told["moved"]
        assert told["masks_before"] == both + told["relabeled"] + told["lost"] + told["unanswered_after"]
        assert told["masks_after"] == both + told["relabeled_here"] + told["added"] + told["unanswered_before"]
        assert sum(told["iou_counts"]) == both
    assert found.total.relabeled_here == found.total.to_dict()["relabeled"]


def test_each_kind_of_change_is_told_with_both_masks(output: Path) -> None:
    still, wide, narrow = box(0, 0, 4, 4), box(5, 0, 5, 4), box(5, 0, 4, 4)
    before = [
        mask(CAT, still, 0.9),
        mask(CAT, wide, 0.8),
        mask(DOG, box(0, 6, 4, 4), 0.7),
        mask(DOG, box(6, 6, 2, 2), 0.6),
    ]
    after = [
        mask(CAT, still, 0.5),
        mask(CAT, narrow, 0.4),
        mask(CAT, box(0, 6, 4, 4), 0.3),
        mask(CAT, box(9, 9, 1, 1), 0.2),
    ]
    write(output, "a", {"1.png": before, "2.png": [], "3.png": [mask(CAT, still)]})
    write(output, "b", {"1.png": after, "2.png": [], "3.png": [mask(CAT, still)]})
    found, table = diff(output)
    assert counts(found, "ovseg:cat") == {"kept": 2, "moved": 1, "added": 1}
    assert counts(found, "ovseg:dog") == {"relabeled": 1, "lost": 1}
    assert (found.images.compared, found.images.changed) == (3, 1)
    assert found.prompts["ovseg:cat"].mean_iou == pytest.approx((2 + 0.8) / 3)
    assert found.prompts["ovseg:cat"].mean_score_change == pytest.approx((0 - 0.4 - 0.4) / 3)
    check_identities(found)
    rows = {row["change"]: row for row in table.to_pylist()}
    assert table.schema.equals(SCHEMA)
    assert sorted(table["change"].to_pylist()) == ["added", "lost", "moved", "relabeled"]
    moved = rows["moved"]
    assert (moved["image_id"], moved["image_uri"], moved["prompt_id"]) == ("1.png", "/p/1.png", "ovseg:cat")
    assert moved["iou"] == pytest.approx(0.8)
    assert (moved["score_before"], moved["score_after"]) == (pytest.approx(0.8), pytest.approx(0.4))
    assert rle.decode(Rle.from_coco(moved["segmentation_before"])).sum() == wide.sum()
    assert rle.decode(Rle.from_coco(moved["segmentation_after"])).sum() == narrow.sum()
    assert moved["annotation_id_before"] != moved["annotation_id_after"]
    again = rows["relabeled"]
    assert (again["category_name_before"], again["category_name_after"], again["iou"]) == ("dog", "cat", 1.0)
    assert (rows["lost"]["segmentation_after"], rows["added"]["score_before"]) == (None, None)


def test_kept_masks_have_rows_on_request_alone(output: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 4, 4))]})
    write(output, "b", {"1.png": [mask(CAT, box(0, 0, 4, 4))]})
    assert diff(output)[1].num_rows == 0
    assert diff(output, with_kept=True)[1]["change"].to_pylist() == ["kept"]


@pytest.mark.parametrize(("kept_iou", "what"), [(0.75, "kept"), (0.9, "moved")])
def test_how_well_kept_masks_agree_can_be_chosen(output: Path, kept_iou: float, what: str) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 5, 4))]})
    write(output, "b", {"1.png": [mask(CAT, box(0, 0, 4, 4))]})
    assert counts(diff(output, kept_iou=kept_iou)[0], "ovseg:cat") == {what: 1}


def test_of_masks_in_one_place_those_of_one_name_are_paired_first(output: Path) -> None:
    here, nearly = box(0, 0, 5, 5), box(0, 0, 5, 4)
    write(output, "a", {"1.png": [mask(CAT, nearly), mask(DOG, here)]})
    write(output, "b", {"1.png": [mask(CAT, here), mask(DOG, nearly)]})
    found, _ = diff(output)
    assert (counts(found, "ovseg:cat"), counts(found, "ovseg:dog")) == ({"moved": 1}, {"moved": 1})


def test_answers_to_regions_and_sentences_are_compared_with_those_to_the_same_alone(output: Path) -> None:
    left, right = named("refseg", "the left one", "the right one")
    point, other = region("vgdseg", "p1", "point", "cat"), region("vgdseg", "p2", "box", "cat")
    place = box(2, 2, 4, 4)
    own = {"1.png": [point, other]}
    write(output, "a", {"1.png": [mask(left, place), mask(point, place)]}, [left, right], own=own)
    write(output, "b", {"1.png": [mask(right, place), mask(other, place)]}, [left, right], own=own)
    found, _ = diff(output)
    assert (counts(found, "refseg:the left one"), counts(found, "refseg:the right one")) == ({"lost": 1}, {"added": 1})
    assert counts(found, OF_SINGLE_IMAGES) == {"lost": 1, "added": 1}
    assert found.prompts[OF_SINGLE_IMAGES].images == 1
    check_identities(found)


def test_masks_of_a_prompt_that_one_side_did_not_answer_are_neither_added_nor_lost(output: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 3, 3)), mask(DOG, box(5, 5, 3, 3))]}, [CAT, DOG])
    write(output, "b", {"1.png": [mask(CAT, box(0, 0, 3, 3)), mask(COW, box(0, 5, 3, 3))]}, [CAT, COW])
    found, table = diff(output)
    assert counts(found, "ovseg:dog") == {"unanswered_after": 1}
    assert counts(found, "ovseg:cow") == {"unanswered_before": 1}
    assert (found.prompts["ovseg:dog"].images, found.prompts["ovseg:dog"].images_before) == (0, 1)
    assert sorted(table["change"].to_pylist()) == ["unanswered_after", "unanswered_before"]
    assert found.images.changed == 0
    told = " ".join(found.notes)
    assert "on the before side only" in told
    assert "ovseg:dog" in told
    assert "ovseg:cow" in told
    check_identities(found)


def test_a_mask_of_a_name_that_was_not_asked_before_is_relabeled_where_another_was(output: Path) -> None:
    write(output, "a", {"1.png": [mask(DOG, box(5, 5, 3, 3))]}, [DOG])
    write(output, "b", {"1.png": [mask(COW, box(5, 5, 3, 3))]}, [COW])
    found, _ = diff(output)
    assert counts(found, "ovseg:dog") == {"relabeled": 1}
    assert found.prompts["ovseg:cow"].relabeled_here == 1
    check_identities(found)


def test_images_of_one_side_and_those_that_failed_are_told(output: Path) -> None:
    one = [mask(CAT, box(0, 0, 3, 3))]
    write(output, "a", {"1.png": one, "2.png": None, "3.png": one, "4.png": one, "5.png": None, "6.png": one})
    write(output, "b", {"0.png": one, "1.png": one, "2.png": one, "3.png": None, "5.png": None})
    found, table = diff(output)
    told = found.images.to_dict()
    assert [told[name] for name in ("compared", "only_before", "only_after")] == [1, 2, 1]
    assert [told[f"quarantined_{side}"] for side in ("before", "after", "both")] == [1, 1, 1]
    assert told["examples"] == {
        "quarantined_before": ["2.png"], "quarantined_after": ["3.png"], "quarantined_both": ["5.png"]
    }  # fmt: skip
    assert sorted(zip(*(table[name].to_pylist() for name in ("image_id", "change")), strict=True)) == [
        ("2.png", "unanswered_before"), ("3.png", "unanswered_after")
    ]  # fmt: skip
    assert sum(" quarantined " in note for note in found.notes) == 3
    check_identities(found)


def test_images_of_other_sizes_are_told_and_not_compared(output: Path, tmp_path: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 3, 3))], "2.png": []})
    wide = {"1.png": [mask(CAT, box(0, 0, 3, 3, (10, 20)))], "2.png": []}
    write(tmp_path / "other", "b", wide, sizes={"1.png": (10, 20)})
    found, table = diff(output, other=tmp_path / "other")
    assert (found.images.resized, found.images.compared, table.num_rows) == (1, 1, 0)
    assert any("another size" in note and "1.png" in note for note in found.notes)


def test_what_is_current_can_be_compared_with_a_run(output: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 3, 3))], "2.png": [mask(CAT, box(0, 0, 3, 3))]})
    write(output, "b", {"1.png": [mask(CAT, box(6, 6, 3, 3))]})
    found, _ = diff(output, runs=("a", None))
    assert (found.images.compared, counts(found, "ovseg:cat")) == (2, {"lost": 1, "added": 1, "kept": 1})


def test_what_a_run_has_changed_is_what_was_current_of_its_images_before_and_is_now(output: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 3, 3))], "2.png": []})
    write(output, "b", {"1.png": [mask(CAT, box(6, 6, 3, 3))]})
    store, place = open_store(str(output)), output.parent / "place"
    place.mkdir()
    found = compare_sides(Chosen(store=store, without_run="b"), Chosen(store=store, images_of="b"), place)
    assert (found.images.compared, found.images.only_before) == (1, 0)
    assert counts(found, "ovseg:cat") == {"lost": 1, "added": 1}
    assert "before run b" in str(found.before)


def test_a_last_run_of_new_images_alone_has_changed_nothing(output: Path) -> None:
    write(output, "a", {"1.png": [mask(CAT, box(0, 0, 3, 3))]})
    write(output, "b", {"2.png": [mask(CAT, box(0, 0, 3, 3))]})
    store, place = open_store(str(output)), output.parent / "place"
    place.mkdir()
    found = compare_sides(Chosen(store=store, without_run="b"), Chosen(store=store, images_of="b"), place)
    assert (found.images.compared, found.images.only_before, found.images.only_after) == (0, 0, 1)
    assert found.prompts == {}


def test_a_condition_counts_masks_that_fit_on_both_sides(output: Path) -> None:
    low, high = mask(CAT, box(0, 0, 3, 3), 0.2), mask(DOG, box(5, 5, 3, 3), 0.8)
    write(output, "a", {"1.png": [low, high]})
    write(output, "b", {"1.png": []})
    found, _ = diff(output, where="score > 0.5 -- and no others")
    assert counts(found, "ovseg:dog") == {"lost": 1}
    assert counts(found, "ovseg:cat") == {}
    with pytest.raises(SourceError, match=r"--where is no SQL condition .*scor"):
        diff(output, where="scor > 0.5")


def test_a_run_that_is_not_finished_is_told(output: Path) -> None:
    four = {f"{number}.png": [mask(CAT, box(0, 0, 3, 3))] for number in range(4)}
    write(output, "a", four)
    write(output, "b", four, committed=1)
    found, _ = diff(output)
    assert (found.images.compared, found.images.only_before) == (2, 2)
    assert any("run b is not finished" in note and "1 of 2 shards" in note for note in found.notes)


def test_nothing_in_common_is_refused_with_ids_of_both(output: Path) -> None:
    write(output, "a", {"left.png": []})
    write(output, "b", {"right.png": []})
    with pytest.raises(SourceError, match=r"nothing to compare.*left\.png.*right\.png"):
        diff(output)


def test_a_damaged_mask_is_named_with_its_image(output: Path) -> None:
    broken = mask(CAT, box(0, 0, 3, 3))
    torn = MaskPrediction(**{name: getattr(broken, name) for name in MaskPrediction.__slots__} | {
        "segmentation": Rle(size_hw=(10, 10), counts="0")
    })  # fmt: skip
    write(output, "a", {"1.png": [broken]})
    write(output, "b", {"1.png": [torn]})
    with pytest.raises(DamagedError, match=r"1\.png cannot be compared"):
        diff(output)


def test_it_comes_to_the_same_however_the_runs_are_cut_and_whichever_side_is_handed_over(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(7)

    def some(count: int) -> dict[str, list[MaskPrediction]]:
        return {
            f"{number:03d}.png": [
                mask(BOTH[rng.integers(2)], box(*(int(v) for v in rng.integers(0, 6, 2)), 4, 4), float(rng.random()))
                for _ in range(rng.integers(4))
            ]
            for number in range(count)
        }

    first, second = some(60), some(60)
    whole = None
    for per_shard, few in ((60, 100_000), (7, 100_000), (7, 0)):
        monkeypatch.setattr("pipelines.diff.sides._FEW", few)
        one, other = (tmp_path / f"{name}-{per_shard}-{few}" for name in ("one", "other"))
        write(one, "a", first, per_shard=per_shard)
        write(other, "b", second, per_shard=5)
        found, table = diff(one, other=other, with_kept=True)
        check_identities(found)
        rows = [
            {name: value for name, value in row.items() if not name.startswith("annotation_id")}
            for row in table.to_pylist()
        ]
        told = {name: tally.to_dict() for name, tally in found.prompts.items()}
        whole = whole or (told, rows)
        assert (told, rows) == whole
    assert whole is not None
    assert Counter(row["change"] for row in whole[1]).keys() >= {"kept", "moved", "relabeled", "added", "lost"}


def test_the_largest_changes_are_kept_one_of_an_image(output: Path) -> None:
    sizes = {"1.png": 2, "2.png": 9, "3.png": 5, "4.png": 3}
    write(output, "a", {name: [] for name in sizes})
    small = mask(CAT, box(0, 0, 1, 1))
    write(output, "b", {name: [mask(CAT, box(0, 0, side, side)), small] for name, side in sizes.items()})
    found, _ = diff(output, num_largest=3)
    (changes,) = found.largest.values()
    assert [(one.image.image_id, one.share) for one in changes] == [("2.png", 0.81), ("3.png", 0.25), ("4.png", 0.09)]
