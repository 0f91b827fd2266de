import json
import pickle

import numpy as np
import pytest

from xsam_model.training.datasets.referring import refcoco

RANDOM = np.random.default_rng
LEFT, RIGHT = [0, 0, 3, 0, 3, 8, 0, 8], [9, 0, 12, 0, 12, 8, 9, 8]


def ref(number, *sentences, image_id=1, ann_id=1, split="train"):
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 18,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012}_{number}.jpg",
        "sent_ids": list(range(len(sentences))),
        "sentences": [
            {"sent": text, "raw": text, "tokens": text.split(), "sent_id": place}
            for place, text in enumerate(sentences)
        ],
    }


@pytest.fixture
def dataset(tmp_path, picture):
    """Write refs and instances: dataset(refs) -> arguments for the reader."""
    picture("photos/COCO_train2014_000000000001.jpg")
    picture("photos/COCO_train2014_000000000002.jpg")
    images = [
        {"id": n, "file_name": f"COCO_train2014_{n:012}.jpg", "width": 12, "height": 8, "license": 1} for n in (1, 2, 3)
    ]
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 18, "iscrowd": 0, "segmentation": [LEFT]},
        {"id": 2, "image_id": 1, "category_id": 18, "iscrowd": 0, "segmentation": [RIGHT]},
        {"id": 3, "image_id": 2, "category_id": 18, "iscrowd": 0, "segmentation": [LEFT]},
        {"id": 4, "image_id": 2, "category_id": 18, "iscrowd": 0, "segmentation": [[1, 2]]},
        {"id": 5, "image_id": 3, "category_id": 18, "iscrowd": 0, "segmentation": [LEFT]},
    ]
    folder = tmp_path / "refcoco"
    folder.mkdir()
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]})
    )

    def write(refs, as_json=False):
        path = folder / ("refs.json" if as_json else "refs(unc).p")
        path.write_bytes(json.dumps(refs).encode() if as_json else pickle.dumps(refs, protocol=2))
        return {"refs": str(path), "instances": str(folder / "instances.json"), "images": str(tmp_path / "photos")}

    return write


GOOD = [
    ref(11, "The left dog ", "left", "LEFT"),
    ref(12, "right dog", ann_id=2),
    ref(13, "a dog", image_id=2, ann_id=3),
]


@pytest.mark.parametrize("as_json", [False, True])
def test_each_sentence_is_a_sample_with_its_mask(dataset, box_mask, as_json):
    source = refcoco(**dataset([*GOOD, ref(14, "tested", split="testA")], as_json))
    assert (source.name, len(source), source.categories, source.skipped) == ("refcoco-refcoco", 4, (), {})
    samples = [source.draw(index, RANDOM(0)) for index in range(4)]
    assert [sample.conditions for sample in samples] == [("the left dog",), ("left",), ("right dog",), ("a dog",)]
    assert all(sample.task == "refseg" and sample.labels.tolist() == [0] for sample in samples)
    left, right = box_mask(0, 0, 3, 8), box_mask(9, 0, 3, 8)
    for sample, mask in zip(samples, (left, left, right, left), strict=True):
        assert (sample.masks[0] == mask).all()
    assert refcoco(**dataset([ref(14, "tested", split="testA")]), split="testA").draw(0, RANDOM(0)).conditions == (
        "tested",
    )


def test_several_sentences_of_an_image_make_one_sample(dataset, box_mask, batch_of):
    source = refcoco(**dataset(GOOD), sentences=2)
    assert len(source) == 2
    seen = set()
    masks = {"right dog": box_mask(9, 0, 3, 8)}
    for seed in range(10):
        sample = source.draw(0, RANDOM(seed))
        assert len(sample.conditions) == 2
        for place, text in enumerate(sample.conditions):
            assert (sample.masks[sample.labels == place] == masks.get(text, box_mask(0, 0, 3, 8))).all()
        seen |= set(sample.conditions)
    assert seen == {"the left dog", "left", "right dog"}
    batch = batch_of(source)
    # A phrase of the same object is no negative.
    assert batch.shared_columns.shape == (3, 3)


def test_sentences_about_several_objects_or_none(dataset, box_mask):
    source = refcoco(**dataset([ref(1, "both dogs", ann_id=[1, 2]), ref(2, "a cat", ann_id=[-1])]))
    both, none = (source.draw(index, RANDOM(0)) for index in range(2))
    assert both.labels.tolist() == [0, 0]
    assert (both.masks.any(0) == box_mask(0, 0, 3, 8) | box_mask(9, 0, 3, 8)).all()
    assert none.masks.shape == (0, 8, 12)


def test_bad_refs_are_left_out(dataset):
    bad = [
        ref(21, "gone", image_id=3, ann_id=5),
        ref(22, "nowhere", image_id=77),
        ref(23, "no object", ann_id=99),
        ref(24, "broken", image_id=2, ann_id=4),
        ref(25, " "),
        ref(26, "a <SEG> dog"),
        ref(27),
    ]
    source = refcoco(**dataset(GOOD + bad))
    assert len(source) == 4
    assert source.skipped == {
        "image missing": ("3",),
        "unknown image": ("ref 22",),
        "unknown annotation": ("ref 23",),
        "malformed annotation": ("ref 24", "ref 25", "ref 27"),
        "reserved words in a text": ("ref 26",),
    }


def test_wrong_files_and_settings_are_errors_that_say_so(dataset, tmp_path):
    arguments = dataset(GOOD)
    with pytest.raises(ValueError, match="no record is of the split 'test'; it has train"):
        refcoco(**arguments, split="test")
    with pytest.raises(ValueError, match="sentences must be 1 or more"):
        refcoco(**arguments, sentences=0)
    with pytest.raises(ValueError, match="expected refs, a list of records; found dict"):
        refcoco(**dataset({"refs": []}))
    with pytest.raises(ValueError, match="record 0 is no ref"):
        refcoco(**dataset([{"id": 1}]))
    with pytest.raises(ValueError, match="no such folder"):
        refcoco(**arguments | dataset(GOOD) | {"images": str(tmp_path / "lost")})
