"""A table against ground truth: by pycocotools where it has the figure, else by hand."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.errors import SourceError
from pipelines.evaluation.category_names import clean_name
from pipelines.evaluation.evaluate import Evaluation, evaluate_output
from pipelines.evaluation.ground_truth import PanopticTruth, read_ground_truth
from pipelines.evaluation.labeled_run import read_run
from tests.support.labeled import RUN, SIZE, box, mask, named, region, write_output
from tests.support.truth_files import instances, panoptic, phrases

CAT, DOG = named("ovseg", "cat", "dog")


def evaluate(output: Any, truth: str, *, is_strict: bool = False, **options: Any) -> Evaluation:
    store, plan = output
    return evaluate_output(store, [plan], read_ground_truth(truth, is_strict=is_strict), **options)


def figures(evaluation: Evaluation) -> dict[tuple[str, str], Any]:
    return {(result.task, result.group): result.figures for result in evaluation.results}


class TestInstances:
    def random_masks(self, seed: int, crowds: bool) -> dict[str, list[Any]]:
        random = np.random.default_rng(seed)
        shown = {}
        for number in range(7):
            objects: list[Any] = []
            for _ in range(random.integers(1, 7)):
                x, y = random.integers(0, 30, 2)
                pixels = box(x, y, *random.integers(4, 14, 2), size_hw=(40, 36))
                if pixels.any():
                    objects.append((["cat", "dog", "red-bird"][random.integers(3)], pixels, crowds and not objects))
            shown[f"{number}.png"] = objects
        return shown

    def test_a_table_against_itself_is_perfect(self, tmp_path: Path) -> None:
        shown = self.random_masks(1, crowds=False)
        asked = {prompt.text: prompt for prompt in named("ovseg", "cat", "dog", "red bird")}
        found = {
            name: [mask(asked[clean_name(category)], pixels) for category, pixels, _ in objects]
            for name, objects in shown.items()
        }
        output = write_output(tmp_path / "o", found, common=[*asked.values()], sizes=dict.fromkeys(found, (40, 36)))
        truth = instances(tmp_path / "t.json", shown, ("cat", "dog", "red-bird"), height=40, width=36)
        evaluation = evaluate(output, truth)
        (result,) = evaluation.results
        assert (result.task, result.group, evaluation.num_images) == ("ovseg", "", 7)
        assert [result.figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([1, 1, 1])
        assert result.figures["true"] == result.figures["found"] == sum(map(len, shown.values()))
        assert list(result.categories) == ["cat", "dog", "red-bird"]
        assert evaluation.notes == (
            "ovseg: 1 name is spelled otherwise in the truth, and compared: red bird with red-bird",
        )

    @pytest.mark.parametrize("task", ["ovseg", "genseg"])
    @pytest.mark.parametrize("crowds", [False, True])
    def test_shifted_and_rescored_masks_score_as_pycocotools_says(
        self, tmp_path: Path, task: Any, crowds: bool
    ) -> None:
        shown, random = self.random_masks(2, crowds), np.random.default_rng(3)
        asked = {prompt.text: prompt for prompt in named(task, "cat", "dog", "red bird")}
        found: dict[str, list[Any]] = {}
        for name, objects in shown.items():
            found[name] = []
            for category, pixels, _ in objects:
                moved = np.roll(pixels, random.integers(0, 3, 2), axis=(0, 1))
                found[name].append(mask(asked[clean_name(category)], moved, float(random.random())))
                other = list(asked.values())[random.integers(3)]
                found[name].append(mask(other, np.roll(pixels, 1, axis=0), float(random.random())))
        output = write_output(tmp_path / "o", found, common=[*asked.values()], sizes=dict.fromkeys(found, (40, 36)))
        truth = instances(tmp_path / "t.json", shown, ("cat", "dog", "red-bird"), height=40, width=36)
        (result,) = evaluate(output, truth).results
        ap, per_category = self.pycocotools(Path(truth), found)
        assert 0.05 < ap[0] < 0.95
        assert [result.figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(ap, abs=1e-12)
        assert [row["AP"] for row in result.categories.values()] == pytest.approx(per_category, abs=1e-12)

    def pycocotools(self, truth: Path, found: dict[str, list[Any]]) -> tuple[list[float], list[float]]:
        """COCOeval itself, from files to figures."""
        names = {c["name"]: c["id"] for c in json.loads(truth.read_text())["categories"]}
        rows = [
            {
                "image_id": image_id,
                "category_id": names[one.prompt.text.replace("red bird", "red-bird")],
                "segmentation": one.segmentation.to_coco(),
                "score": float(np.float32(one.score)),
            }
            for image_id, masks in enumerate(found.values())
            for one in masks
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(truth))
            for annotation in coco.dataset["annotations"]:
                annotation["area"] = float(coco_mask.area(annotation["segmentation"]))
            evaluation = COCOeval(coco, coco.loadRes(rows), "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        precision = evaluation.eval["precision"][:, :, :, 0, 2]
        return list(evaluation.stats[:3]), [float(precision[:, :, k].mean()) for k in range(3)]

    def test_images_that_are_cut_by_the_batches_of_reading_stay_whole(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipelines.evaluation.labeled_run._ROWS_PER_BATCH", 2)
        boxes = [box(x, 0, 2, 4) for x in range(0, 10, 2)]
        names = [f"folder/{number}.png" for number in range(5)]
        found = {name: [mask(CAT, pixels, 0.1 * n) for n, pixels in enumerate(boxes)] for name in names}
        found["folder/other.png"] = found[names[0]]
        output = write_output(tmp_path / "o", found, common=[CAT], per_shard=4)
        shown = {f"{number}.png": [("cat", pixels) for pixels in boxes] for number in range(5)}
        counted: list[tuple[str, int]] = []
        evaluation = evaluate(
            output,
            instances(tmp_path / "t.json", shown),
            on_image=lambda task, number: counted.append((task, number)),
        )
        assert figures(evaluation)["ovseg", ""] == pytest.approx(
            {"AP": 1, "AP50": 1, "AP75": 1, "true": 25, "found": 25}
        )
        assert counted == [("ovseg", number) for number in range(1, 6)]

    def test_polygons_and_run_lengths_are_masks_too(self, tmp_path: Path) -> None:
        polygon = [[2, 2, 6, 2, 6, 6, 2, 6]]
        runs = {"size": list(SIZE), "counts": [0, 100]}
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", polygon), ("dog", runs)]})
        found = {"a.png": [mask(CAT, box(2, 2, 4, 4)), mask(DOG, box(0, 0, 10, 10))]}
        output = write_output(tmp_path / "o", found, common=[CAT, DOG])
        assert figures(evaluate(output, truth))["ovseg", ""]["AP"] == pytest.approx(1)

    def test_categories_on_one_side_only_are_left_out_and_named(self, tmp_path: Path) -> None:
        asked = named("ovseg", "Cat", "unicorn")
        found = {"a.png": [mask(asked[0], box(0, 0, 4, 4)), mask(asked[1], box(5, 5, 4, 4), 0.9)]}
        output = write_output(tmp_path / "o", found, common=asked)
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4)), ("dog", box(5, 5, 4, 4))]})
        evaluation = evaluate(output, truth)
        assert figures(evaluation)["ovseg", ""] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "true": 1, "found": 1})
        assert [note for note in evaluation.notes if "dog" in note and "never asked, left out" in note]
        assert [note for note in evaluation.notes if "unicorn" in note and "no category of the truth" in note]
        everything = evaluate(output, truth, count_unasked=True)
        assert figures(everything)["ovseg", ""]["AP"] == pytest.approx(0.5)
        assert [note for note in everything.notes if "dog" in note and "not found" in note]

    def test_decisions_and_a_condition_on_masks(self, tmp_path: Path) -> None:
        found = {
            "a.png": [mask(CAT, box(0, 0, 4, 4), 0.9), mask(CAT, box(5, 5, 4, 4), 0.6), mask(DOG, box(8, 0, 2, 2))]
        }
        output = write_output(tmp_path / "o", found, common=[CAT, DOG])
        shown = {"a.png": [("cat", box(0, 0, 4, 4)), ("dog", box(5, 5, 4, 4)), ("dog", None)]}
        truth = instances(tmp_path / "t.json", shown)
        evaluation = evaluate(output, truth, score=0.55)
        (result,) = evaluation.results
        assert [note for note in evaluation.notes if "no mask: annotation 3 of a.png" in note]
        assert {name: result.figures[name] for name in ("precision", "recall", "F1")} == {
            "precision": 0.5, "recall": 0.5, "F1": 0.5
        }  # fmt: skip
        cat = {"precision": 0.5, "recall": 1, "F1": 2 / 3, "best F1": 1, "best score": 0.9}
        assert {name: result.categories["cat"][name] for name in cat} == pytest.approx(cat)
        assert {"true": "dog", "found": "cat", "count": 1} in result.confusion
        assert json.loads(json.dumps(evaluation.to_dict()))["results"][0]["scores"][0]["score"] == 0.9
        (strict,) = evaluate(output, truth, where="score > 0.7 AND width = 10 -- only those").results
        assert (strict.figures["found"], strict.categories["cat"]["AP"]) == (1, pytest.approx(1))
        assert strict.confusion == ()

    def test_a_truth_of_which_nothing_can_be_found_is_refused_with_the_reasons(self, tmp_path: Path) -> None:
        output = write_output(tmp_path / "o", {"a.png": [mask(CAT, box(0, 0, 4, 4))]}, common=[CAT])
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", []), ("cat", None)]})
        with pytest.raises(SourceError, match=r"2 entries of the truth left out: no mask: annotation 1 of a.png"):
            evaluate(output, truth)

    def test_a_truth_of_crowds_is_told(self, tmp_path: Path) -> None:
        output = write_output(tmp_path / "o", {"a.png": [mask(CAT, box(0, 0, 4, 4))]}, common=[CAT])
        shown = [("cat", box(0, 0, 4, 4)), ("cat", box(5, 5, 2, 2), True), ("cat", box(8, 8, 2, 2), True)]
        evaluation = evaluate(output, instances(tmp_path / "t.json", {"a.png": shown}))
        assert [note for note in evaluation.notes if "2 of 3 objects of the truth are crowds" in note]

    @pytest.mark.parametrize("where", ["nonsense > 3", "true) --"])
    def test_what_is_no_condition_is_refused(self, tmp_path: Path, where: str) -> None:
        output = write_output(tmp_path / "o", {"a.png": [mask(CAT, box(0, 0, 4, 4))]}, common=[CAT])
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4))]})
        with pytest.raises(SourceError, match="--where"):
            evaluate(output, truth, where=where)

    def test_images_that_only_share_a_base_name_are_told(self, tmp_path: Path) -> None:
        one = [mask(CAT, box(0, 0, 4, 4))]
        output = write_output(tmp_path / "o", dict.fromkeys(("day/1.png", "x/2.png", "3.png"), one), common=[CAT])
        names = ("night/1.png", "images\\x\\2.png", "val/3.png")
        truth = instances(tmp_path / "t.json", {name: [("cat", box(0, 0, 4, 4))] for name in names})
        notes = evaluate(output, truth).notes
        (note,) = [note for note in notes if "another folder" in note]
        assert note == "1 image lies in another folder in the truth, compared by base name: night/1.png with day/1.png"

    def test_some_images_of_another_size_are_left_out(self, tmp_path: Path) -> None:
        one = [mask(CAT, box(0, 0, 4, 4))]
        output = write_output(tmp_path / "o", {"a.png": one, "b.png": one}, common=[CAT])
        truth = instances(tmp_path / "t.json", {name: [("cat", box(0, 0, 4, 4))] for name in ("a.png", "b.png")})
        document = json.loads(Path(truth).read_text())
        document["images"][1] |= {"height": 9, "width": 8}
        Path(truth).write_text(json.dumps(document))
        evaluation = evaluate(output, truth)
        assert (evaluation.num_images, evaluation.results[0].figures["true"]) == (1, 1)
        assert [note for note in evaluation.notes if "image b.png (8 x 9 pixels there, 10 x 10 labeled)" in note]
        with pytest.raises(SourceError, match=r"image b.png: another size"):
            evaluate(output, truth, is_strict=True)

    def test_no_category_in_common(self, tmp_path: Path) -> None:
        output = write_output(tmp_path / "o", {"a.png": []}, common=named("ovseg", "unicorn"))
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4))]})
        with pytest.raises(SourceError, match=r"none of the 1 name asked \(unicorn\).*2 categories.*cat, dog"):
            evaluate(output, truth)

    def test_what_is_found_on_an_image_without_objects_is_wrong(self, tmp_path: Path) -> None:
        found = {"a.png": [mask(CAT, box(0, 0, 4, 4), 0.5)], "b.png": [mask(CAT, box(0, 0, 4, 4), 0.9)]}
        output = write_output(tmp_path / "o", found, common=[CAT])
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4))], "b.png": []})
        assert figures(evaluate(output, truth))["ovseg", ""]["AP"] == pytest.approx(0.5)

    def test_quarantined_unlabeled_and_untold_images_are_reported(self, tmp_path: Path) -> None:
        one = [mask(CAT, box(0, 0, 4, 4))]
        found = {"a.png": one, "broken.png": None, "more.png": one, "z1.png": one, "z2.png": one}
        output = write_output(tmp_path / "o", found, common=[CAT], committed=2)
        names = ("a.png", "broken.png", "never.png")
        truth = instances(tmp_path / "t.json", {name: [("cat", box(0, 0, 4, 4))] for name in names})
        evaluation = evaluate(output, truth)
        assert (evaluation.num_images, evaluation.num_quarantined) == (2, 1)
        # One of two objects found, without a mistake: precision 1 up to recall 0.5, 51 of 101 places.
        assert figures(evaluation)["ovseg", ""]["AP"] == pytest.approx(51 / 101)
        text = "\n".join(evaluation.notes)
        assert "1 of 3 images of the truth are not labeled, left out: never.png" in text
        assert "2 of 4 labeled images are not in the truth" in text
        assert "nothing is found on 1 quarantined image: 1 truncated" in text
        assert "not finished: 4 of 5" in text


class TestMatching:
    def run(self, tmp_path: Path, ids: list[str], names: list[str]) -> dict[str, str]:
        store, plan = write_output(tmp_path / "o", dict.fromkeys(ids, ()), common=[CAT])
        return {name: image.image_id for name, image in read_run(store, [plan], names).images.items()}

    def test_by_the_whole_name_or_else_by_its_last_part(self, tmp_path: Path) -> None:
        ids = ["s3://b/val/1.jpg", "a/2.jpg", "b/2.jpg", "3.jpg", "x/4.jpg", "x/cafe\u0301.jpg", "x/6.jpg"]
        names = ["1.jpg", "b/2.jpg", "images/3.jpg", "5.jpg", "caf\u00e9.jpg", "images\\val\\6.jpg"]
        assert self.run(tmp_path, ids, names) == {
            "1.jpg": "s3://b/val/1.jpg",
            "b/2.jpg": "b/2.jpg",
            "images/3.jpg": "3.jpg",
            "caf\u00e9.jpg": "x/cafe\u0301.jpg",
            "images\\val\\6.jpg": "x/6.jpg",
        }

    @pytest.mark.parametrize(
        ("ids", "names"), [(["a/1.jpg", "b/1.jpg"], ["1.jpg"]), (["1.jpg", "2.jpg"], ["a/1.jpg", "b/1.jpg", "2.jpg"])]
    )
    def test_a_name_that_could_be_several(self, tmp_path: Path, ids: list[str], names: list[str]) -> None:
        with pytest.raises(SourceError, match=r"1 base name is ambiguous .*, e.g. 1.jpg: .*a/1.jpg"):
            self.run(tmp_path, ids, names)

    def test_nothing_in_common_shows_both_sides(self, tmp_path: Path) -> None:
        words = r"none of the 4 images .*\(a.jpg, b.jpg, c.jpg, ...\).* the 2 labeled images .*\(1.png, 2.png\)"
        with pytest.raises(SourceError, match=words):
            self.run(tmp_path, ["1.png", "2.png"], ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])

    def test_nothing_labeled_yet(self, tmp_path: Path) -> None:
        store, plan = write_output(tmp_path / "o", {"1.png": ()}, common=[CAT], committed=0)
        with pytest.raises(SourceError, match="holds no labeled image yet"):
            read_run(store, [plan], ["1.png"])

    def test_another_size(self, tmp_path: Path) -> None:
        output = write_output(tmp_path / "o", {"a.png": []}, common=[CAT])
        truth = instances(tmp_path / "t.json", {"a.png": []} | {"b.png": [("cat", {"size": [9, 8], "counts": [72]})]})
        document = json.loads(Path(truth).read_text())
        document["images"][0] |= {"height": 9, "width": 8}
        Path(truth).write_text(json.dumps(document))
        with pytest.raises(SourceError, match=r"none of 1 image has .* a.png: 8 x 9 pixels there, 10 x 10 labeled"):
            evaluate(output, truth)

    def test_of_several_runs_the_rows_that_are_current(self, tmp_path: Path) -> None:
        right, wrong = mask(CAT, box(0, 0, 4, 4)), mask(CAT, box(5, 5, 4, 4))
        _, first = write_output(tmp_path / "o", {"a.png": [wrong], "b.png": [right]}, common=[CAT])
        store, later = write_output(tmp_path / "o", {"a.png": [right], "c.png": [right]}, common=[CAT], run_id="later")
        truth = instances(
            tmp_path / "t.json", {name: [("cat", box(0, 0, 4, 4))] for name in ("a.png", "b.png", "c.png")}
        )
        _, other = write_output(tmp_path / "o", {"z.png": [right]}, common=[CAT], run_id="other-photos")
        evaluation = evaluate_output(store, [first, later, other], read_ground_truth(truth))
        assert (evaluation.runs, evaluation.num_images) == ((RUN, "later"), 3)
        assert figures(evaluation)["ovseg", ""]["AP"] == pytest.approx(1)
        assert figures(evaluate_output(store, [first], read_ground_truth(truth)))["ovseg", ""]["AP"] < 1

    def test_only_the_run_that_is_asked_for(self, tmp_path: Path) -> None:
        write_output(tmp_path / "o", {"a.png": [mask(CAT, box(5, 5, 4, 4))]}, common=[CAT], run_id="other")
        output = write_output(tmp_path / "o", {"a.png": [mask(CAT, box(0, 0, 4, 4))]}, common=[CAT])
        truth = instances(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4))]})
        evaluation = evaluate(output, truth)
        assert evaluation.runs == (RUN,)
        assert figures(evaluation)["ovseg", ""]["AP"] == pytest.approx(1)
        assert figures(evaluation)["ovseg", ""]["found"] == 1


def test_visual_prompts_are_measured_by_kind_where_they_were_asked(tmp_path: Path) -> None:
    own = {
        "a.png": [region("vgdseg", "p1", "point", "cat"), region("vgdseg", "b1", "box", "dog")],
        "b.png": [region("vgdseg", "p1", "point", "dog"), region("vgdseg", "out", "box", "cat")],
    }
    shown = {
        "a.png": [("cat", box(0, 0, 4, 4)), ("dog", box(5, 5, 4, 4))],
        "b.png": [("cat", box(0, 0, 4, 4)), ("dog", box(5, 5, 4, 4)), ("dog", box(5, 0, 4, 4))],
    }
    found = {
        "a.png": [mask(own["a.png"][0], box(0, 0, 4, 4)), mask(own["a.png"][1], box(0, 5, 4, 4))],
        "b.png": [mask(own["b.png"][0], box(5, 5, 4, 4), 0.9), mask(own["b.png"][0], box(5, 0, 4, 4), 0.8)],
    }
    output = write_output(tmp_path / "o", found, own=own, rejected={"b.png": ["out"]})
    evaluation = evaluate(output, instances(tmp_path / "t.json", shown))
    measured = figures(evaluation)
    # Points: the cat of a and both dogs of b are found; what they were not asked for is no miss.
    assert measured["vgdseg", "point"] == pytest.approx({"AP": 1, "AP50": 1, "AP75": 1, "true": 3, "found": 3})
    assert measured["vgdseg", "box"] == pytest.approx({"AP": 0, "AP50": 0, "AP75": 0, "true": 1, "found": 1})
    assert set(measured) == {("vgdseg", "point"), ("vgdseg", "box")}
    assert "vgdseg: 1 prompt could not be asked, left out" in evaluation.notes


THINGS = {"cat": True, "dog": True, "sky-other-merged": False}


class TestMaps:
    def maps(self) -> dict[str, list[tuple[str, np.ndarray, bool]]]:
        """A cat over sky with two void columns; and sky alone."""
        return {
            "a.jpg": [("cat", box(0, 0, 4, 10), False), ("sky-other-merged", box(4, 0, 4, 10), False)],
            "b.jpg": [("sky-other-merged", box(0, 0, 10, 10), False)],
        }

    def found(self, task: Any) -> dict[str, Any]:
        cat, _, sky = named(task, "cat", "dog", "sky")
        return {
            "a.jpg": [mask(cat, box(0, 0, 3, 10)), mask(sky, box(3, 0, 7, 10))],
            "b.jpg": [mask(sky, box(0, 0, 5, 10)), mask(cat, box(5, 0, 5, 10))],
        }

    @pytest.mark.parametrize("task", ["ovseg_panoptic", "genseg_panoptic"])
    def test_panoptic_quality_by_hand(self, tmp_path: Path, task: Any) -> None:
        output = write_output(tmp_path / "o", self.found(task), common=named(task, "cat", "dog", "sky"))
        evaluation = evaluate(output, panoptic(tmp_path / "panoptic.json", self.maps(), THINGS))
        measured = figures(evaluation)
        # a: cat 30 of 40; sky 40 in common, 50 in the union without void. b: sky is 0.5, not above, so missed twice
        # (found only, true only), and the cat is wrong.
        cat = {"PQ": 0.75 / 1.5, "SQ": 0.75, "RQ": 1 / 1.5}
        sky = {"PQ": 0.8 / 2, "SQ": 0.8, "RQ": 1 / 2}
        assert measured[task, "things"] == pytest.approx(cat)
        assert measured[task, "stuff"] == pytest.approx(sky)
        assert measured[task, ""] == pytest.approx({name: (cat[name] + sky[name]) / 2 for name in cat})
        (everything, *_) = evaluation.results
        assert everything.categories["sky-other-merged"] == pytest.approx({**sky, "true": 2, "found": 2})

    def test_semantic_iou_by_hand(self, tmp_path: Path) -> None:
        task = "ovseg_semantic"
        output = write_output(tmp_path / "o", self.found(task), common=named(task, "cat", "dog", "sky"))
        (result,) = evaluate(output, panoptic(tmp_path / "panoptic.json", self.maps(), THINGS)).results
        # cat: 30 of 40 + 50 wrong; sky: 40 + 50 of 40 + 100 + 10 wrong, void not counted.
        assert result.figures["mIoU"] == pytest.approx((30 / 90 + 90 / 150) / 2)
        assert result.categories["cat"] == pytest.approx({"IoU": 30 / 90, "true pixels": 40})

    def test_a_quarantined_image_is_all_missed(self, tmp_path: Path) -> None:
        task = "genseg_semantic"
        found = {**self.found(task), "b.jpg": None}
        output = write_output(tmp_path / "o", found, common=named(task, "cat", "dog", "sky"))
        (result,) = evaluate(output, panoptic(tmp_path / "panoptic.json", self.maps(), THINGS)).results
        assert result.figures["mIoU"] == pytest.approx((30 / 40 + 40 / 150) / 2)

    def test_found_categories_that_the_truth_does_not_know_do_not_count(self, tmp_path: Path) -> None:
        common = named("ovseg_panoptic", "cat", "ghost")
        found = {"a.jpg": [mask(common[0], box(0, 0, 4, 10)), mask(common[1], box(4, 0, 4, 10))], "b.jpg": []}
        output = write_output(tmp_path / "o", found, common=common)
        evaluation = evaluate(output, panoptic(tmp_path / "panoptic.json", self.maps(), THINGS))
        assert figures(evaluation)["ovseg_panoptic", ""]["PQ"] == 1
        assert ("ovseg_panoptic", "stuff") not in figures(evaluation)

    def test_broken_maps(self, tmp_path: Path) -> None:
        common = named("ovseg_panoptic", "cat", "sky")
        output = write_output(tmp_path / "o", self.found("ovseg_panoptic"), common=common)
        truth = panoptic(tmp_path / "panoptic.json", self.maps(), THINGS)
        png = tmp_path / "panoptic" / "a.png"
        for break_it, words in (
            (png.unlink, r"a\.png: not found"),
            (lambda: png.write_bytes(b"no picture"), r"a\.png: not a readable PNG"),
            (lambda: PILImage.fromarray(np.zeros((4, 5, 3), np.uint8)).save(png), "is 5 x 4 pixels, but its image 10"),
            (
                lambda: PILImage.fromarray(np.full((*SIZE, 3), 9, np.uint8)).save(png),
                r"segment ids that the truth does not list",
            ),
        ):
            break_it()
            read = read_ground_truth(truth)
            assert isinstance(read, PanopticTruth)
            assert read.segments("a.jpg") is None
            assert re.search(f"1 entry of the truth left out: .*the map of a.jpg .*{words}", str(read.left_out))
        evaluation = evaluate(output, truth)
        assert [note for note in evaluation.notes if "the map cannot be used: the map of a.jpg" in note]
        with pytest.raises(SourceError, match=f"the map of a.jpg.*{words}"):
            evaluate(output, truth, is_strict=True)
        png.unlink()
        (tmp_path / "panoptic" / "b.png").unlink()
        with pytest.raises(SourceError, match=r"2 entries .*the map of a.jpg.*the map of b.jpg"):
            evaluate(output, truth)

    def test_a_segment_without_pixels_is_left_out_and_counted(self, tmp_path: Path) -> None:
        common = named("ovseg_panoptic", "cat", "sky")
        output = write_output(tmp_path / "o", self.found("ovseg_panoptic"), common=common)
        truth = panoptic(tmp_path / "panoptic.json", self.maps(), THINGS)
        plain = evaluate(output, truth)
        document = json.loads(Path(truth).read_text())
        entry = next(entry for entry in document["annotations"] if entry["file_name"] == "a.png")
        entry["segments_info"].append({**entry["segments_info"][0], "id": 777})
        Path(truth).write_text(json.dumps(document))
        evaluation = evaluate(output, truth)
        assert evaluation.results[0].figures == plain.results[0].figures
        assert "1 entry of the truth left out: a mask without a pixel of its image: segment 777 of a.jpg" in (
            evaluation.notes
        )
        with pytest.raises(SourceError, match=r"segment 777 of a\.jpg: a mask without a pixel"):
            evaluate(output, truth, is_strict=True)


class TestPhrases:
    def test_referring_by_hand(self, tmp_path: Path) -> None:
        left = named("refseg", "the LEFT cat")[0]
        own = {
            "a.png": [named("refseg", "a dog")[0]],
            "b.png": [named("reaseg", "What barks?")[0], named("refseg", "nothing")[0]],
        }
        found = {
            "a.png": [mask(left, box(0, 0, 4, 5)), mask(own["a.png"][0], box(0, 0, 10, 10))],
            "b.png": [mask(left, box(0, 0, 5, 5)), mask(own["b.png"][0], box(0, 0, 2, 5))],
        }
        output = write_output(tmp_path / "o", found, common=[left], own=own)
        empty = np.zeros(SIZE, np.bool_)
        truth = phrases(
            tmp_path / "t.json",
            {"file_name": "a.png", "phrase": " the left cat", "segmentation": box(0, 0, 4, 10)},
            {"file_name": "b.png", "phrase": "The left cat", "segmentation": box(0, 0, 5, 5)},
            {"file_name": "b.png", "phrase": "nothing", "segmentation": None, "height": 10, "width": 10},
            {"file_name": "b.png", "prompt_id": "reaseg:What barks?", "segmentation": box(0, 0, 1, 5),
             "ignore": box(1, 0, 1, 4)},
            {"file_name": "b.png", "phrase": "never asked", "segmentation": empty},
        )  # fmt: skip
        evaluation = evaluate(output, truth)
        # refseg: 20 of 40, 25 of 25, and an empty mask that stayed empty. reaseg: 5 of 10 less the 4 ignored.
        assert figures(evaluation) == {
            ("refseg", ""): pytest.approx({"cIoU": 45 / 65, "gIoU": (0.5 + 1 + 1) / 3, "true": 3}),
            ("reaseg", ""): pytest.approx({"cIoU": 5 / 6, "gIoU": 5 / 6, "true": 1}),
        }
        assert [note for note in evaluation.notes if note.startswith("1 of 5 entries")]

    def test_interactive_by_kind(self, tmp_path: Path) -> None:
        own = {"a.png": [region("intseg", "p", "point"), region("intseg", "q", "box"), region("intseg", "r", "box")]}
        point, square, outside = own["a.png"]
        found = {"a.png": [mask(point, box(0, 0, 4, 5)), mask(square, box(5, 5, 4, 4))]}
        output = write_output(tmp_path / "o", found, own=own)
        truth = phrases(
            tmp_path / "t.json",
            {"file_name": "a.png", "prompt_id": "p", "segmentation": box(0, 0, 4, 10)},
            {"file_name": "a.png", "prompt_id": "q", "segmentation": box(5, 5, 4, 4)},
            {"file_name": "a.png", "prompt_id": outside.prompt_id, "segmentation": box(0, 0, 1, 4)},
        )
        assert figures(evaluate(output, truth)) == {
            ("intseg", ""): pytest.approx({"cIoU": 36 / 60, "mIoU": (0.5 + 1 + 0) / 3, "true": 3}),
            ("intseg", "point"): pytest.approx({"cIoU": 0.5, "mIoU": 0.5, "true": 1}),
            ("intseg", "box"): pytest.approx({"cIoU": 16 / 20, "mIoU": 0.5, "true": 2}),
        }

    def test_captions_by_hand(self, tmp_path: Path) -> None:
        caption = named("gcgseg", "caption")[0]
        found = {
            "a.png": [mask(caption, box(0, 0, 4, 10)), mask(caption, box(8, 8, 2, 2))],
            "b.png": None,
            "c.png": [mask(caption, box(0, 0, 4, 4))],
        }
        output = write_output(tmp_path / "o", found, common=[caption])
        truth = phrases(
            tmp_path / "t.json",
            {"file_name": "a.png", "task": "gcgseg", "phrase": "a cat", "segmentation": box(0, 0, 5, 10)},
            {"file_name": "b.png", "task": "gcgseg", "segmentation": box(0, 0, 5, 5)},
        )
        measured = figures(evaluate(output, truth))["gcgseg", ""]
        # a: one pair of 40 / 50; b: none. AP50: one of two found, a wrong mask beside it with the same score.
        assert measured["mIoU"] == pytest.approx(0.8 / 2)
        assert 0 < measured["AP50"] < 0.6
        assert (measured["true"], measured["found"]) == (2, 2)

    def test_nothing_that_was_asked(self, tmp_path: Path) -> None:
        output = write_output(tmp_path / "o", {"a.png": []}, common=named("refseg", "a cat"))
        truth = phrases(tmp_path / "t.json", {"file_name": "a.png", "phrase": "a dog", "segmentation": box(0, 0, 1, 1)})
        with pytest.raises(SourceError, match="has no entry for what run run-1 was asked"):
            evaluate(output, truth)


def test_truth_of_another_task_says_what_was_asked(tmp_path: Path) -> None:
    output = write_output(tmp_path / "o", {"a.png": []}, common=[CAT, *named("refseg", "a dog")])
    truth = panoptic(tmp_path / "t.json", {"a.png": [("cat", box(0, 0, 4, 4), False)]}, {"cat": True})
    with pytest.raises(
        SourceError, match=r"is truth for ovseg_panoptic, .*, but run run-1 was asked for ovseg, refseg"
    ):
        evaluate(output, truth)


def test_what_was_never_asked_of_an_image_is_not_missing_there(tmp_path: Path) -> None:
    """Two runs of different images and names, and an image that nothing was asked of: all that was asked is found."""
    (point,) = [region("vgdseg", "p1", "point", "cup")]
    shown = {
        "a.png": [("cat", box(0, 0, 3, 3), False), ("dog", box(5, 5, 3, 3), False)],
        "b.png": [("cat", box(1, 1, 3, 3), False), ("dog", box(5, 5, 3, 3), False)],
        "c.png": [("cat", box(2, 2, 3, 3), False)],
    }
    truth = instances(tmp_path / "truth.json", shown, ("cat", "dog"))
    output = tmp_path / "output"
    _, first = write_output(output, {"a.png": [mask(CAT, box(0, 0, 3, 3))]}, common=[CAT])
    _, second = write_output(output, {"b.png": [mask(DOG, box(5, 5, 3, 3))]}, common=[DOG], run_id="run-2")
    found = {"c.png": []}
    store, third = write_output(output, found, own={"d.png": [point]}, run_id="run-3")
    evaluation = evaluate_output(store, [first, second, third], read_ground_truth(truth))
    (result,) = evaluation.results
    assert (result.figures["true"], result.figures["found"], result.figures["AP"]) == (2, 2, pytest.approx(1))
    assert "ovseg: 1 image was never asked, left out: c.png" in evaluation.notes
    everything = evaluate_output(store, [first, second, third], read_ground_truth(truth), count_unasked=True)
    assert everything.results[0].figures["true"] == 4
