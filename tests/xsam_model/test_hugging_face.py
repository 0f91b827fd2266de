"""Model and processor do what users of transformers expect of any model: calls, arguments and kinds of input."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForUniversalSegmentation,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

from xsam_model import XSamForSegmentation, XSamImageProcessor, XSamProcessor, XSamSegmenter
from xsam_model.losses.losses import IGNORED_TOKEN
from xsam_model.losses.targets import Targets
from xsam_model.training.loop.network import XSamTraining
from xsam_model.training.samples.batches import TrainingBatch

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


@pytest.fixture
def squares():
    """Six pictures with a bright square each, and where it is."""
    rng = np.random.default_rng(0)
    pictures = []
    for top, left in rng.integers(0, 40, (6, 2)):
        pixels, mask = np.full((64, 64, 3), 30, dtype=np.uint8), np.zeros((64, 64), dtype=bool)
        mask[top : top + 24, left : left + 24] = True
        pixels[mask] = (240, 200, 40)
        pictures.append((pixels, mask))
    return pictures


def with_labels(processor, pictures):
    labels = [{"masks": mask[None], "class_labels": [1]} for _, mask in pictures]
    return processor([pixels for pixels, _ in pictures], conditions=[["dog", "square"]] * len(pictures), labels=labels)


def test_labels_give_a_loss_beside_the_same_answers(tiny_model, tiny_processor, squares):
    inputs = with_labels(tiny_processor, squares[:1])
    assert inputs["labels"][0]["masks"].shape == (1, *inputs["segmentor_pixel_values"].shape[2:])
    with torch.no_grad():
        torch.manual_seed(0)
        outputs = tiny_model(**inputs)
        torch.manual_seed(0)
        loss, class_logits = tiny_model(**inputs, return_dict=False)[:2]
        inputs.pop("labels")
        expected = tiny_model(**inputs)
    assert torch.equal(outputs.loss, loss)
    assert torch.equal(outputs.class_logits, class_logits)
    torch.testing.assert_close(outputs.mask_logits, expected.mask_logits)
    assert "loss" not in expected
    assert set(outputs) - {"loss"} == set(expected)


@torch.no_grad()
def test_the_loss_is_that_of_training_without_words(tiny_model, tiny_processor, squares):
    inputs = with_labels(tiny_processor, squares[:2])
    torch.manual_seed(0)
    keys = torch.randint(2**61, (2,)).tolist()
    torch.manual_seed(0)
    loss = tiny_model(**inputs).loss
    labels = inputs.pop("labels")
    batch = TrainingBatch(
        task="ovseg", source="squares", inputs=inputs.for_model(), keys=tuple(keys), num_samples=2,
        targets=Targets(
            masks=torch.cat([one["masks"] for one in labels]), labels=torch.tensor([1, 1]), decodes=torch.arange(2)
        ),
        class_ids=torch.full((2,), -1), shared_columns=None,
        token_labels=torch.full_like(inputs["input_ids"], IGNORED_TOKEN),
    )  # fmt: skip
    expected = XSamTraining(tiny_model, "mixed")(batch)
    # Training asks for all hidden states, whose last bits differ, and with them which points count as uncertain.
    torch.testing.assert_close(loss, expected["classes"] + expected["mask"] + expected["dice"], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([], "labels has 0 entries for 1 image"),
        ([{"masks": np.ones((1, 60, 90), bool), "class_labels": [2]}], "0 to 1"),
        ([{"masks": np.ones((2, 60, 90), bool), "class_labels": [0]}], "2 masks have the class_labels"),
        ([{"masks": np.ones((1, 60, 91), bool), "class_labels": [0]}], "60"),
    ],
)
def test_labels_that_are_not_those_of_the_images_are_refused(labels, told, tiny_processor, picture):
    with pytest.raises(ValueError, match=told):
        tiny_processor(picture(*SIZE), conditions=[["dog", "cat"]], labels=labels)


def test_the_trainer_of_transformers_trains(tiny_folder, tiny_processor, squares, tmp_path):
    model = XSamForSegmentation.from_pretrained(tiny_folder)
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=8, per_device_train_batch_size=2, learning_rate=2e-3, logging_steps=1,
        remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no", seed=0, disable_tqdm=True,
        eval_strategy="steps", eval_steps=8,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=squares, eval_dataset=squares[:1],
        data_collator=lambda pictures: with_labels(tiny_processor, pictures),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert trainer.state.log_history[-2]["eval_loss"] < losses[0]


BARE = """
import json, sys
for name in ("xsam_model", "pipelines", "actors", "flows"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForUniversalSegmentation, AutoProcessor
folder, again = sys.argv[1:]
trusted = {"trust_remote_code": True}
model = AutoModel.from_pretrained(folder, **trusted).eval()
processor = AutoProcessor.from_pretrained(folder, **trusted)
for auto, part in ((AutoModelForUniversalSegmentation, model), (AutoImageProcessor, processor.image_processor)):
    assert type(auto.from_pretrained(folder, **trusted)).__name__ == type(part).__name__
inputs = processor(np.full((60, 90, 3), 90, dtype=np.uint8), conditions="cat")
with torch.no_grad():
    outputs = model(**inputs)
processor.post_process_instance_segmentation(outputs, target_sizes=[(60, 90)])
model.save_pretrained(again)
processor.save_pretrained(again)
torch.save(outputs.mask_logits, again + "/logits.pt")
"""


def test_a_saved_folder_loads_without_this_package_by_its_own_code(tiny_folder, tiny_model, tiny_processor, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", BARE, tiny_folder, tmp_path / "again"]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    inputs = tiny_processor(np.full((60, 90, 3), 90, dtype=np.uint8), conditions="cat")
    with torch.no_grad():
        expected = tiny_model(**inputs).mask_logits
    torch.testing.assert_close(torch.load(tmp_path / "again" / "logits.pt"), expected)
    # What is saved there is as complete.
    assert {path.name for path in tiny_folder.iterdir()} <= {path.name for path in (tmp_path / "again").iterdir()}
    assert "trust_remote_code=True" in (tiny_folder / "README.md").read_text()


def test_a_saved_card_is_kept(tiny_model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tiny_model.config.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModel"] == "modeling_xsam.XSamForSegmentation"
