import json

import numpy as np
import pytest

from xsam_model.training.datasets.grounded_captions import grandf, mark_phrases

RANDOM = np.random.default_rng
CAPTION = '"A Dog sits beside a man on the dog bed. "'
ANSWER = "a <p>dog</p> sits beside <p>a man</p> on the dog bed. <SEG>"


@pytest.fixture
def write(tmp_path, picture):
    """Write a file of captions, and two pictures: write(document) -> arguments for the reader."""
    picture("photos/1.jpg")
    picture("photos/2.jpg")

    def made(document):
        path = tmp_path / "captions.json"
        path.write_text(json.dumps(document))
        return {"annotations": str(path), "images": str(tmp_path / "photos")}

    return made


@pytest.fixture
def groundings(rle, box_mask):
    return {
        "a man": {"token_positives": [18, 23], "rle_masks": [rle(box_mask(6, 0, 3, 8))]},
        "Dog": {"token_positives": [2, 5], "rle_masks": [rle(box_mask(0, 0, 2, 8)), rle(box_mask(3, 0, 2, 8))]},
    }


def check(sample, box_mask):
    assert (sample.task, sample.conditions, sample.answer) == ("gcgseg", (), ANSWER)
    assert sample.labels.tolist() == [0, 1]
    dog = box_mask(0, 0, 2, 8) | box_mask(3, 0, 2, 8)
    assert (sample.masks == np.stack([dog, box_mask(6, 0, 3, 8)])).all()


def test_phrases_are_marked_in_the_order_of_the_caption(write, groundings, box_mask, batch_of):
    record = {"image_id": "1", "file_name": "1.jpg", "caption": CAPTION, "groundings": groundings}
    source = grandf(**write([record, record | {"height": 8, "width": 12}]))
    assert (source.name, len(source), source.skipped) == ("grandf", 2, {})
    check(source.draw(0, RANDOM(0)), box_mask)
    check(source.draw(1, RANDOM(0)), box_mask)
    as_written = grandf(**write([record]), lower_case=False).draw(0, RANDOM(0))
    assert as_written.answer == "A <p>Dog</p> sits beside <p>a man</p> on the dog bed. <SEG>"
    batch = batch_of(source)
    assert len(batch.targets.masks) == 4


def test_a_phrase_is_searched_where_its_place_is_wrong(write, groundings, box_mask):
    groundings["Dog"]["token_positives"] = [0, 3]
    record = {"image_id": "1", "file_name": "1.jpg", "caption": CAPTION, "groundings": groundings}
    check(grandf(**write([record])).draw(0, RANDOM(0)), box_mask)


def test_captions_of_refcocog_give_polygons(write, box_mask):
    refs = [
        {"sentence": "a man", "segmentation": [[6, 0, 9, 0, 9, 8, 6, 8]], "bbox": [6, 0, 3, 8]},
        {"sentence": "Dog", "segmentation": [[0, 0, 2, 0, 2, 8, 0, 8], [3, 0, 5, 0, 5, 8, 3, 8]]},
        {"sentence": "dog sits", "segmentation": [[0, 0, 2, 0, 2, 8, 0, 8]]},
        {"sentence": "a cat", "segmentation": [[0, 0, 2, 0, 2, 8, 0, 8]]},
    ]
    inner = {"img_file_name": "1.jpg", "caption": CAPTION, "refs": refs[:2]}
    check(grandf(**write([{"77": inner}])).draw(0, RANDOM(0)), box_mask)
    check(grandf(**write([inner])).draw(0, RANDOM(0)), box_mask)
    source = grandf(**write([{"77": inner | {"refs": [refs[0], *refs[2:]]}}]))
    assert source.skipped == {"phrase not in its caption": ("a cat of 77",)}
    assert source.draw(0, RANDOM(0)).answer == "a <p>dog sits</p> beside <p>a man</p> on the dog bed. <SEG>"


def test_captions_of_flickr_are_a_coco_file(write, rle, box_mask):
    image = {"id": 5, "file_name": "1.jpg", "height": 8, "width": 12, "caption": CAPTION}
    boxes = [([[2, 5]], (0, 0, 2, 8)), ([[18, 23]], (6, 0, 3, 8)), ([[2, 5], [32, 35]], (3, 0, 2, 8))]
    annotations = [
        {"id": n, "image_id": 5, "tokens_positive": places, "bbox": box, "sam_mask": rle(box_mask(*box))}
        for n, (places, box) in enumerate(boxes)
    ]
    annotations.append({"id": 9, "image_id": 5, "tokens_positive": []})
    source = grandf(**write({"images": [image, {"id": 6}], "annotations": annotations, "categories": []}))
    assert source.skipped == {"malformed annotation": ("annotation number 3", "image number 1")}
    check(source.draw(0, RANDOM(0)), box_mask)


def test_of_overlapping_phrases_the_first_is_marked(write, rle, box_mask):
    mask = rle(box_mask(0, 0, 2, 8))
    groundings = {"a dog": {"token_positives": [0, 5], "rle_masks": [mask]}}
    groundings["dog sits"] = {"token_positives": [2, 10], "rle_masks": [mask]}
    record = {"image_id": "1", "file_name": "1.jpg", "caption": "a dog sits", "groundings": groundings}
    assert grandf(**write([record])).draw(0, RANDOM(0)).answer == "<p>a dog</p> sits <SEG>"


def test_bad_captions_are_left_out(write, groundings):
    record = {"image_id": "1", "file_name": "1.jpg", "caption": CAPTION, "groundings": groundings}
    bad = [
        record | {"image_id": "b", "file_name": "none.jpg"},
        record | {"image_id": "c", "groundings": {}},
        record | {"image_id": "d", "caption": "A <p>Dog</p>"},
        {"image_id": "e", "groundings": {}},
        "text",
        record | {"image_id": "f", "height": 80, "width": 12},
        {},
    ]
    source = grandf(**write([record, *bad]))
    assert len(source) == 1
    assert source.skipped == {
        "image missing": ("b",),
        "nothing annotated": ("c", "f"),
        "reserved words in a text": ("d",),
        "malformed annotation": ("record 4", "record 5", "record 7"),
        "image of another size": ("a man of f", "Dog of f"),
    }


def test_wrong_files_are_errors_that_say_so(write):
    with pytest.raises(ValueError, match="expected grounded captions, a list of records; found dict"):
        grandf(**write({"images": []}))
    with pytest.raises(ValueError, match="no usable record"):
        grandf(**write([]))


def test_marks_surround_the_phrases():
    assert mark_phrases("one two", [(0, 3), (4, 7)]) == "<p>one</p> <p>two</p> <SEG>"
    assert mark_phrases("one", []) == "one <SEG>"
