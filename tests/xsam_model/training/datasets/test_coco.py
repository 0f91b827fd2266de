import json
import logging
import pickle

import numpy as np
import pytest

from xsam_model.training.datasets.coco import instances, visual_prompts
from xsam_model.training.samples.samples import TrainingSample

BOX = [2, 1, 6, 1, 6, 4, 2, 4]
RANDOM = np.random.default_rng


def entry(image_id, name=None, width=12, height=8):
    return {"id": image_id, "file_name": name or f"{image_id}.jpg", "width": width, "height": height}


def thing(number, image_id=1, category_id=1, segmentation=None, **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0, "bbox": [0, 0, 12, 8]} | {
        "segmentation": segmentation or [BOX],
        **more,
    }


def test_every_object_has_a_mask_and_every_category_is_asked(write, photos, box_mask, rle):
    crowd = {"size": [8, 12], "counts": [0, 32, 64]}  # the four columns at the left
    path = write(
        [entry(1), entry(2)],
        [
            thing(7, category_id=18),
            thing(8, category_id=1, segmentation=rle(box_mask(9, 0, 3, 8))),
            thing(9, segmentation=crowd, iscrowd=1),
            thing(10, image_id=2),
        ],
    )
    source = instances(path, photos)
    assert (source.name, source.categories, len(source)) == ("coco-instances-genseg", ("person", "dog", "wall"), 2)
    assert source.skipped == {}
    sample = source.draw(0, RANDOM(0))
    assert (sample.task, sample.source) == ("genseg", source.name)
    assert sample.conditions == ("person", "dog", "wall")
    assert sample.labels.tolist() == [1, 0]
    assert (sample.masks == np.stack([box_mask(2, 1, 4, 3), box_mask(9, 0, 3, 8)])).all()
    # A crowd is ignored, but not where an object is.
    assert (sample.ignore == (box_mask(0, 0, 4, 8) & ~box_mask(2, 1, 4, 3))).all()
    assert source.draw(1, RANDOM(0)).ignore is None
    assert instances(path, photos, task="ovseg").draw(0, RANDOM(0)).task == "ovseg"


def test_bad_records_are_left_out_and_counted_by_reason(write, photos, caplog):
    path = write(
        [entry(1), entry(2), entry(3), {"id": 4, "file_name": "1.jpg"}],
        [
            thing(7),
            thing(8, segmentation=[[1, 1, 4, 4]], bbox=[8, 0, 4, 8]),
            thing(9, category_id=77),
            thing(10, image_id=99),
            thing(11, image_id=3),
            {"id": 12, "image_id": 1},
        ],
    )
    with caplog.at_level(logging.WARNING):
        source = instances(path, photos)
    assert source.skipped == {
        "image missing": ("3",),
        "malformed annotation": ("4", "annotation 8", "annotation 12"),
        "unknown image": ("annotation 10",),
        "unknown category": ("annotation 9",),
        "nothing annotated": ("2",),
    }
    assert len(source) == 1
    sample = source.draw(0, RANDOM(0))
    assert sample.labels.tolist() == [0]
    # What has no outline has a box, where nothing is learned.
    assert sample.ignore[:, 8:].all()
    assert not sample.ignore[:, :8].any()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "7 records" in message
    assert "malformed annotation: 3 (4, annotation 8, annotation 12)" in message


def test_images_without_objects_are_negatives_if_wanted(write, photos):
    source = instances(write([entry(1)], []), photos, empty_images=True)
    sample = source.draw(0, RANDOM(0))
    assert sample.masks.shape == (0, 8, 12)
    assert sample.conditions == source.categories


def test_an_image_that_cannot_be_drawn_is_replaced_and_told_once(write, photos, truncated, picture, caplog):
    truncated("photos/3.jpg", 120, 80)
    picture("photos/4.jpg", 8, 12)
    path = write(
        [entry(1), entry(3, width=120, height=80), entry(4)], [thing(7), thing(8, image_id=3), thing(9, image_id=4)]
    )
    source = instances(path, photos)
    assert len(source) == 3
    with caplog.at_level(logging.WARNING):
        drawn = [source.draw(index, RANDOM(5)) for index in (1, 2, 1, 2)]
    assert all(sample.image.shape == (8, 12, 3) for sample in drawn)
    assert source.skipped == {"image unreadable": ("3",), "image of another size": ("4",)}
    assert len(caplog.records) == 2
    assert "8 x 12 pixels, but its annotations are for 12 x 8" in caplog.text
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.draw(1, RANDOM(5)).masks, drawn[0].masks)


def test_which_record_takes_the_place_follows_from_the_generator(write, picture, tmp_path):
    for number in range(20):
        picture(f"photos/{number}.jpg", 12 if number else 5)
    path = write([entry(number) for number in range(20)], [thing(n, image_id=n, bbox=[n] * 4) for n in range(20)])
    source = instances(path, str(tmp_path / "photos"))
    shown, make = [], source._make
    source._make = lambda record, *given: shown.append(record.record_id) or make(record, *given)
    for seed in (1, 2, 3, 1, 2, 3):
        source.draw(0, RANDOM(seed))
    assert shown[:3] == shown[3:]
    assert len(set(shown)) > 1


def test_a_source_of_nothing_but_bad_images_ends_clearly(write, photos):
    source = instances(write([entry(1, width=13)], [thing(7)]), photos)
    with pytest.raises(ValueError, match=r"coco-instances-genseg: none of 100 .*another size"):
        source.draw(0, RANDOM(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"none\.json: a COCO file cannot be read .*check the path"),
        ("{", r"file\.json: not JSON"),
        ("[]", r"file\.json: no COCO file: expected an object with the lists images, annotations, categories"),
        ('{"images": [], "annotations": {}}', "no 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "list of categories is empty"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "an id and a name each"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', r"no usable record in .*none"),
    ],
)
def test_a_wrong_file_is_an_error_that_says_so(tmp_path, photos, content, message):
    path = tmp_path / ("file.json" if content else "none.json")
    if content:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        instances(str(path), photos)


def test_wrong_settings_are_refused(write, photos):
    path = write([entry(1)], [thing(7)])
    with pytest.raises(ValueError, match="task must be one of genseg, ovseg"):
        instances(path, photos, task="refseg")
    with pytest.raises(ValueError, match="no such folder"):
        instances(path, photos + "-lost")
    with pytest.raises(ValueError, match="task must be one of vgdseg, intseg"):
        visual_prompts(path, photos, task="ovseg")
    with pytest.raises(ValueError, match="kinds must be some of point"):
        visual_prompts(path, photos, kinds=["polygon"])
    with pytest.raises(ValueError, match="max_prompts"):
        visual_prompts(path, photos, max_prompts=0)


def check_prompts(sample: TrainingSample, expected_categories):
    assert sorted(sample.conditions) == sorted(expected_categories)
    assert len(sample.visual_prompts) == len(sample.conditions)
    for label, prompt in enumerate(sample.visual_prompts):
        assert (prompt & sample.masks[sample.labels == label].any(0)).any()


def test_a_prompt_of_each_category_asks_for_all_its_objects(write, photos, box_mask, batch_of):
    dog = [8, 0, 12, 0, 12, 4, 8, 4]
    path = write([entry(1)], [thing(7), thing(8, segmentation=[dog], category_id=18), thing(9, segmentation=[[0] * 6])])
    source = visual_prompts(path, photos)
    assert (source.name, source.categories) == ("coco-vgdseg", ())
    for seed in range(8):
        sample = source.draw(0, RANDOM(seed))
        check_prompts(sample, ["person", "dog"])
        assert len(sample.masks) == 3
        dogs = sample.masks[sample.labels == sample.conditions.index("dog")]
        assert (dogs == box_mask(8, 0, 4, 4)).all()
    assert len(visual_prompts(path, photos, max_prompts=1).draw(0, RANDOM(0)).conditions) == 1
    assert batch_of(source).inputs["region_points"]


def test_a_prompt_of_one_object_asks_for_this_one(write, photos, batch_of):
    path = write([entry(1)], [thing(7), thing(8, segmentation=[[8, 0, 12, 0, 12, 4, 8, 4]])])
    source = visual_prompts(path, photos, task="intseg", kinds=["box"])
    sample = source.draw(0, RANDOM(0))
    check_prompts(sample, ["person", "person"])
    assert sorted(sample.labels.tolist()) == [0, 1]
    assert len(batch_of(source, 1).targets.masks) == 2


def test_prompts_of_psalm_are_enlarged_where_they_are_thin(tmp_path, picture, rle, box_mask, batch_of):
    picture("photos/1.jpg", 60, 40)
    size = (40, 60)
    point, box = box_mask(30, 20, 1, 1, size), box_mask(10, 10, 30, 20, size)
    nothing = np.zeros(size, dtype=np.bool_)
    annotation = {"id": 3, "category_id": 18, "iscrowd": 0, "bbox": [10, 10, 30, 20], "segmentation": rle(box)} | {
        "point_visual_prompt_mask": rle(point),
        "scribble_visual_prompt_mask": rle(point),
        "box_visual_prompt_mask": rle(box),
        "mask_visual_prompt_mask": rle(nothing),
    }
    info = {"file_name": "1.jpg", "height": 40, "width": 60, "id": 99}
    path = tmp_path / "coco_interactive_train_psalm.json"
    path.write_text(json.dumps([{"image": "1.jpg", "image_info": info, "anns": [annotation]}, {"image": "2.jpg"}]))
    photos = str(tmp_path / "photos")

    def prompt(kind, **more):
        source = visual_prompts(str(path), photos, task="intseg", kinds=[kind], **more)
        assert source.skipped == {"malformed annotation": ("record 1",)}
        return source.draw(0, RANDOM(0)).visual_prompts[0]

    rows, columns = np.mgrid[:40, :60]
    for kind, radius in (("point", 10), ("scribble", 5)):
        assert (prompt(kind) == ((rows - 20) ** 2 + (columns - 30) ** 2 <= radius**2)).all()
    assert (prompt("box") == box).all()
    assert prompt("mask").any()  # an empty one is drawn instead
    source = visual_prompts(str(path), photos)
    assert source.draw(0, RANDOM(0)).conditions == ("category 18",)
    names = tmp_path / "instances.json"
    names.write_text(json.dumps({"categories": [{"id": 18, "name": "dog"}]}))
    named = visual_prompts(str(path), photos, categories=str(names))
    assert named.draw(0, RANDOM(0)).conditions == ("dog",)
    batch_of(named)


def test_prompts_of_coco_vgd_are_used_as_they_are(tmp_path, photos, rle, box_mask):
    prompts = {"point_visual_prompt": rle(box_mask(3, 2, 1, 1)), "scribble_visual_prompt": rle(box_mask(3, 2, 2, 1))}
    annotation = {"id": 1, "category_id": 1, "segmentation": [BOX], "visual_prompts": prompts}
    path = tmp_path / "coco_vgdseg_train.json"
    record = {"image_file": "1.jpg", "image_id": 1, "image_size": [8, 12], "annotations": [annotation]}
    path.write_text(json.dumps([record]))
    for kind in ("point", "scribble"):
        sample = visual_prompts(str(path), photos, kinds=[kind]).draw(0, RANDOM(0))
        assert (sample.visual_prompts[0] == box_mask(3, 2, 1 if kind == "point" else 2, 1)).all()
        assert (sample.masks[0] == box_mask(2, 1, 4, 3)).all()


def test_instances_make_a_training_batch(write, photos, batch_of):
    batch = batch_of(instances(write([entry(1), entry(2)], [thing(7), thing(8, image_id=2)]), photos))
    assert len(batch.targets.masks) == 2
    assert batch.class_ids.tolist() == [0, 0]
