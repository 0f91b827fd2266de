"""Model and processor do what users of transformers expect of any model: calls, arguments and kinds of input."""

import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForUniversalSegmentation, AutoProcessor

from xsam_model import XSamForSegmentation, XSamImageProcessor, XSamProcessor, XSamSegmenter

SIZE = (60, 90)


@pytest.fixture
def inputs(tiny_processor, picture):
    return tiny_processor([picture(*SIZE)], conditions=[["dog", "cat"]])


@pytest.fixture
def outputs(tiny_model, inputs):
    with torch.no_grad():
        return tiny_model(**inputs)


@pytest.fixture
def file(tmp_path, picture):
    """A photograph that its EXIF tag turns to lie on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(*SIZE)).save(tmp_path / "turned.png", exif=exif)
    return tmp_path / "turned.png"


@torch.no_grad()
def test_the_model_takes_all_that_the_processor_returns(tiny_model, tiny_processor, inputs, outputs, picture):
    expected = tiny_model(**inputs.for_model())
    assert set(inputs) - set(inputs.for_model()) == {"num_conditions", "original_sizes", "scaled_sizes"}
    assert torch.equal(outputs.mask_logits, expected.mask_logits)
    asked = tiny_processor([picture(*SIZE)], task="gcgseg", generate=True)
    assert len(tiny_model.generate(**asked, stop_token_ids=[], max_new_tokens=3).sequences) == 1


@torch.no_grad()
def test_an_argument_that_does_not_exist_is_refused(tiny_model, inputs):
    with pytest.raises(TypeError, match="pixel_value"):
        tiny_model(**inputs, pixel_value=1)


@torch.no_grad()
def test_an_output_is_a_tuple_where_no_dictionary_is_wanted(tiny_model, inputs, outputs):
    found = tiny_model(**inputs, return_dict=False)
    assert isinstance(found, tuple)
    assert torch.equal(found[0], outputs.class_logits)


@pytest.mark.parametrize("kind", ["instance", "semantic", "panoptic", "phrase"])
def test_masks_are_of_the_target_sizes(kind, tiny_processor, inputs, outputs):
    process = getattr(tiny_processor, f"post_process_{kind}_segmentation")
    options = {"threshold": 0.0} if kind in ("instance", "panoptic") else {}
    (expected,) = process(outputs, inputs["scaled_sizes"], inputs["original_sizes"], **options)
    for sizes in ([SIZE], torch.tensor([SIZE])):
        (found,) = process(outputs, target_sizes=sizes, **options)
        for name in expected.__dataclass_fields__:
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs
    for sizes in ({}, {"target_sizes": [SIZE], "scaled_sizes": [SIZE], "original_sizes": [SIZE]}):
        with pytest.raises(ValueError, match="give target_sizes"):
            process(outputs, **sizes)


def test_interactive_masks_are_of_the_target_sizes(tiny_model, tiny_processor, picture):
    prompt = np.zeros(SIZE, dtype=bool)
    prompt[10:30, 20:60] = True
    inputs = tiny_processor(picture(*SIZE), task="intseg", visual_prompts=[[prompt]])
    with torch.no_grad():
        outputs = tiny_model(**inputs)
    (found,) = tiny_processor.post_process_interactive_segmentation(outputs, target_sizes=[SIZE], prompt_masks=[prompt])
    assert found.masks.shape == (1, *SIZE)


def test_an_instance_needs_a_score_of_a_half_unless_said_otherwise(tiny_processor, outputs):
    every, default, half = (
        tiny_processor.post_process_instance_segmentation(outputs, target_sizes=[SIZE], **given)[0].scores
        for given in ({"threshold": 0.0}, {}, {"threshold": 0.5})
    )
    assert torch.equal(default, half)
    assert len(every) > len(half)


@pytest.mark.parametrize("conditions", ["cat", ["cat"], [["cat"]]])
def test_a_string_is_one_condition(conditions, tiny_processor, tiny_model, picture):
    image = picture(*SIZE)
    expected = tiny_processor([image], task="ovseg", conditions=[["cat"]])
    found = tiny_processor([image], conditions=conditions)
    assert found["num_conditions"] == [1]
    assert torch.equal(found["input_ids"], expected["input_ids"])
    for task, rows in (("refseg", 1), ("ovseg", None)):
        (result,) = XSamSegmenter(tiny_model, tiny_processor).segment(
            [image], task=task, conditions=conditions, threshold=0.0
        )
        assert rows is None or len(result.segmentation) == rows


def test_strings_are_the_conditions_of_their_images_and_one_string_that_of_all(tiny_processor, picture):
    images = [picture(*SIZE), picture(*SIZE)]
    for strings, lists in ((["cat", "dog"], [["cat"], ["dog"]]), ("cat", [["cat"]] * 2)):
        found, expected = (tiny_processor(images, conditions=given)["input_ids"] for given in (strings, lists))
        assert torch.equal(found, expected)
    with pytest.raises(ValueError, match=r"conditions has 2 entries for 1 image; its list is \[\['cat', 'dog'\]\]"):
        tiny_processor(images[:1], conditions=["cat", "dog"])


def test_images_may_be_arrays_pictures_and_paths_alone_or_together(tiny_processor, file):
    turned = np.rot90(np.asarray(Image.open(file)), -1).copy()
    expected = tiny_processor([turned], conditions="cat")
    for images in (turned, Image.fromarray(turned), file, str(file), [file], turned[None]):
        found = tiny_processor(images, conditions="cat")
        assert found["original_sizes"] == [(SIZE[1], SIZE[0])]
        for name, value in expected.for_model().items():
            assert torch.equal(found[name], value), name
    assert len(tiny_processor([turned, file], conditions="cat")["original_sizes"]) == 2


def test_an_image_may_be_a_url(tiny_processor, file):
    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=file.parent)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        found = tiny_processor(f"{url}/{file.name}", conditions="cat")
        with pytest.raises(ValueError, match=r"missing.png is no picture that can be read: .*404"):
            tiny_processor(f"{url}/missing.png", conditions="cat")
        server.shutdown()
    assert torch.equal(found["pixel_values"], tiny_processor(file, conditions="cat")["pixel_values"])


def test_what_is_no_picture_is_named(tiny_processor, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "missing.png"):
        with pytest.raises(ValueError, match=f"{name} is no picture that can be read"):
            tiny_processor(tmp_path / name, conditions="cat")
    Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="must have pixels of 8 bits"):
        tiny_processor(tmp_path / "deep.png", conditions="cat")


def test_a_segmenter_takes_one_path_as_the_processor_does(tiny_model, tiny_processor, file):
    (result,) = XSamSegmenter(tiny_model, tiny_processor).segment(file, conditions="cat", threshold=0.0)
    assert tuple(result.segmentation.masks.shape[1:]) == (SIZE[1], SIZE[0])


def test_auto_classes_know_all_parts(tiny_folder):
    assert isinstance(AutoModelForUniversalSegmentation.from_pretrained(tiny_folder), XSamForSegmentation)
    assert isinstance(AutoProcessor.from_pretrained(tiny_folder), XSamProcessor)
    assert isinstance(AutoImageProcessor.from_pretrained(tiny_folder), XSamImageProcessor)


@pytest.mark.parametrize("load", [AutoModel.from_pretrained, XSamForSegmentation.from_pretrained])
def test_a_folder_with_two_sets_of_weights_is_refused(load, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match=r"two sets of weights, model.safetensors and the shards of model.safeten"):
        load(folder)
