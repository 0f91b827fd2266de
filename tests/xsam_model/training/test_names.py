"""A name head is put together: which classes a name stands for, the classifier of a changed trunk, and the reader."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.xsam_model.layers.test_trunk import trunk_config
from tests.xsam_model.training.test_pretrained_trunk import Published
from xsam_model import XSamForSegmentation, XSamProcessor
from xsam_model.configuration_xsam import XSamNameHeadConfig
from xsam_model.layers.name_head import XSamNameReader, gather_names
from xsam_model.testing import save_untrained
from xsam_model.training.names.__main__ import main
from xsam_model.training.names.assembly import canvases, read_pictures, with_name_head
from xsam_model.training.names.fitting import fit_features, tokenized, train_reader
from xsam_model.training.names.inputs import NameInputs, read_classes
from xsam_model.training.names.nouns import Nouns
from xsam_model.training.names.teacher import ClassNames, NameTeacher
from xsam_model.training.pretrained_trunk import trunk_weights

# place, file, words, kinds, gloss
SYNSETS = [
    ("00000001", 5, ["animal"], [], "a living thing that moves"),
    ("00000002", 5, ["dog", "domestic_dog"], ["00000001"], "a pet; it barks"),
    ("00000003", 5, ["beagle"], ["00000002"], "a small hound"),
    ("00000004", 5, ["pug"], ["00000002"], "a small dog with a flat face"),
    ("00000005", 6, ["cup"], [], "a small open container"),
    ("00000006", 18, ["dog", "cad"], ["00000007"], "someone who is morally bad"),
    ("00000007", 18, ["person"], [], "a human being"),
    ("00000008", 18, ["diver"], ["00000007"], "someone who dives"),
    ("00000009", 4, ["dive"], [], "a steep fall"),
    ("00000010", 5, ["cat"], ["00000001"], "a pet that purrs"),
    ("00000011", 6, ["bell"], [], "a thing that rings"),
    ("00000012", 6, ["drum"], [], "a thing to beat"),
]
CLASSES = ClassNames(
    names=("beagle", "pug", "cup", "diver", "bell", "drum"),
    senses=("00000003", "00000004", "00000005", "00000008", "00000011", "00000012"),
)


def write_wordnet(folder):
    folder.mkdir(parents=True, exist_ok=True)
    license = "  1 This is a license.\n"
    data, senses = [license], {}
    for place, file, words, kinds, gloss in SYNSETS:
        text = " ".join(f"{word} 0" for word in words)
        pointers = "".join(f" @ {kind} n 0000" for kind in kinds)
        data.append(
            f"{place} {file:02} n {len(words):02x} {text} {len(kinds) + 1:03}{pointers} ~ 00000001 n 0000 | {gloss}\n"
        )
        for word in words:
            senses.setdefault(word, []).append(place)
    index = [license]
    for word, places in senses.items():
        index.append(f"{word} n {len(places)} 1 @ {len(places)} {int(word in ('dog', 'cup'))} {' '.join(places)}\n")
    (folder / "data.noun").write_text("".join(data))
    (folder / "index.noun").write_text("".join(index))
    return folder


def letters(texts):
    """Texts are near each other as far as they have the same letters."""
    rows = np.array([[text.count(letter) for letter in map(chr, range(97, 123))] for text in texts], dtype=np.float32)
    return rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def nouns(tmp_path_factory):
    return Nouns.read(write_wordnet(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(scope="module")
def teacher(nouns):
    return NameTeacher(CLASSES, nouns, letters)


def test_wordnet_is_read(nouns):
    assert nouns.visible_senses("dog") == ["00000002", "00000006"]
    assert nouns.visible_senses("Red Dog") == nouns.visible_senses("dog")
    assert nouns.visible_senses("dive") == nouns.visible_senses("zzz") == nouns.visible_senses("") == []
    assert nouns.above("00000003") == {"00000003": 0, "00000002": 1, "00000001": 2}
    assert nouns.common == {"dog", "cup"}
    assert nouns.glosses["00000002"] == "a pet"
    assert "domestic dog" not in nouns.names()
    assert {"dog", "cup", "cat"} <= set(nouns.names())


def test_a_name_stands_for_the_classes_of_its_kind(nouns):
    def alike(texts):
        return np.ones((len(texts), 1), dtype=np.float32)

    dog, cup, unknown = NameTeacher(CLASSES, nouns, alike).distributions(["dog", "cup", "xyzzy"])
    assert [row.sum() for row in (dog, cup, unknown)] == pytest.approx([1, 1, 1], abs=1e-5)
    assert set(dog.argsort()[-2:]) == {0, 1}
    assert dog[4] < dog[3] < dog[0] / 2, "a dog is a person too, but hardly ever in pictures"
    assert cup.argmax() == 2
    assert cup[2] > 0.3
    assert np.ptp(unknown) < 1e-6


def test_a_name_that_wordnet_lacks_stands_for_what_is_called_nearly_so(teacher):
    drums, other = teacher.distributions(["drumz", "qqqqq"])
    assert drums.argmax() == 5
    assert np.ptp(other) < np.ptp(drums)


def test_a_kind_without_a_class_of_its_own_stands_for_its_relatives_less_surely(teacher):
    cat, dog = teacher.distributions(["cat", "dog"])
    assert cat.std() < dog.std()


def test_the_map_between_trunks_is_found():
    random = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(400, 6, generator=random), torch.randn(3, 6, generator=random)
    found, bias = fit_features(inputs, inputs @ weight.T + 2)
    torch.testing.assert_close(found, weight, atol=0.01, rtol=0)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("plain") / "model", config=trunk_config())


def test_names_are_tokenized_as_in_conversations(folder):
    processor, names = XSamProcessor.from_pretrained(folder), ["T-shirt", "red panda", "cup"]
    inputs = processor(task="ovseg", conditions=[names])
    marks = processor.tokenizer.convert_tokens_to_ids(["<p>", "</p>"])
    distinct, which = gather_names(inputs["input_ids"], inputs["cond_ids"], marks)
    in_conversation = [row[row > 0].tolist() for row in distinct[which[0]]]
    assert [ids.tolist() for ids in tokenized(processor, names)] == in_conversation


def test_the_reader_learns_what_its_teacher_says(folder):
    processor, names = XSamProcessor.from_pretrained(folder), ["dog", "god", "cup"]
    torch.manual_seed(0)
    reader = XSamNameReader(XSamNameHeadConfig(num_classes=3, token_size=16, hidden_size=16), len(processor.tokenizer))
    targets = np.eye(3, dtype=np.float32)
    weights = np.ones(3, dtype=np.float32)
    losses = train_reader(reader, processor, names, targets, weights, steps=60, batch_size=6, learning_rate=0.02)
    assert losses[-1] < 0.1 * losses[0]
    read = reader(torch.nn.utils.rnn.pad_sequence(tokenized(processor, [*names, "red cup"]), batch_first=True))
    assert read.argmax(1).tolist() == [0, 1, 2, 2]
    assert not any(one.requires_grad for one in reader.parameters())


def published_weights(config, features, classes):
    torch.manual_seed(0)
    published = Published(config)
    published.add("_conv_head", "_bn1", config.channels[-1], features, 1)
    published.state["_fc.weight"], published.state["_fc.bias"] = torch.randn(classes, features), torch.randn(classes)
    return published.state


def test_a_model_gets_a_name_head_that_sees_what_the_published_classifier_sees(folder, teacher, tmp_path):
    config = trunk_config().mask_encoder_config
    weights = published_weights(config, 24, len(CLASSES.names))
    model = XSamForSegmentation.from_pretrained(folder)
    model.segmentor.encoder.load_state_dict(trunk_weights(weights, config), strict=False)
    start = tmp_path / "start"
    model.save_pretrained(start)
    (start / "NOTICE").write_text("an older one\nwhose they are\n")
    processor = XSamProcessor.from_pretrained(folder)
    processor.save_pretrained(start)
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(40)]
    head = XSamNameHeadConfig(layers=[5], feature_size=24, num_classes=6, token_size=8, hidden_size=8)
    inputs = NameInputs(weights=weights, notices=("whose they are\n", "who taught it\n"), teacher=teacher)
    told: list[str] = []
    with_name_head(
        start, tmp_path / "named", inputs, pictures, config=head, steps=2, names=["dog", "cup"], say=told.append
    )
    assert [line.split(":")[0] for line in told] == [
        "fitting the classifier to 40 cuts",
        "asking the teacher about 2 names",
        "reader 0/2",
    ]
    named = XSamForSegmentation.from_pretrained(tmp_path / "named")
    assert (tmp_path / "named" / "NOTICE").read_text() == "an older one\nwhose they are\n\nwho taught it\n"
    for name, value in model.state_dict().items():
        assert torch.equal(value, named.state_dict()[name]), name
    (canvas, *_) = canvases(pictures[:2], processor)
    with torch.no_grad():
        last = named.segmentor.encoder.encode(canvas, {5})[5]
        looks = named.name_head.look([last])
        wanted = torch.nn.functional.conv2d(last.permute(0, 3, 1, 2), weights["_conv_head.weight"])
        norm = [weights[f"_bn1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        wanted = torch.nn.functional.batch_norm(wanted, *norm, eps=1e-3).clamp(0, 6).permute(0, 2, 3, 1)
    # Least squares with a ridge, of few places.
    assert (looks - wanted).abs().mean() < 0.02 * wanted.std()
    assert torch.equal(named.name_head.classes.weight, weights["_fc.weight"])


def test_pictures_are_cut_the_same_way_each_time_and_broken_ones_left_out(tmp_path):
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.jpg")
    (tmp_path / "deep").mkdir()
    Image.new("L", (20, 40), 7).save(tmp_path / "deep" / "b.png")
    (tmp_path / "c.jpg").write_bytes(b"no picture")
    told = []
    cuts = [read_pictures([tmp_path], 7, 32, told.append) for _ in range(2)]
    assert all(np.array_equal(one, other) for one, other in zip(*cuts, strict=True))
    assert {max(cut.shape[:2]) for cut in cuts[0]} == {32}
    assert cuts[0][0].shape == (21, 32, 3)
    assert len(told) == 2
    assert "c.jpg is left out" in told[0]
    with pytest.raises(ValueError, match="--pictures: no photograph"):
        read_pictures([tmp_path / "none"], 1, 32)


def test_classes_are_read_without_what_is_in_brackets(tmp_path):
    (tmp_path / "imagenet1k_clean_names.json").write_text(json.dumps(["tench", "crane (bird)"]))
    (tmp_path / "imagenet1k_to_21k.json").write_text(json.dumps({"1": "n02012849", "0": "n01440764"}))
    assert read_classes(tmp_path) == ClassNames(names=("tench", "crane"), senses=("01440764", "02012849"))


def test_bad_arguments_are_refused_before_anything_is_fetched(tmp_path, folder, capsys):
    common = ["--pictures", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main(["--model", str(tmp_path), *common]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert main(["--model", str(folder), *common]) == 2
    assert "--pictures: no photograph" in capsys.readouterr().err
    (tmp_path / "out").write_text("")
    assert main(["--model", str(folder), *common]) == 2
    assert "--output" in capsys.readouterr().err
