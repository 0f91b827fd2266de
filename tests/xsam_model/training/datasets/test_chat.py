import json

import numpy as np
import pytest

from xsam_model.training.datasets.chat import llava

RANDOM = np.random.default_rng


def turns(*texts):
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


TALK = {"id": "7", "image": "coco/1.jpg", "conversations": turns("<image>\nWhat is it?", "A dog.", "Old?", " Young. ")}


@pytest.fixture
def write(tmp_path, picture):
    """Write conversations and a picture: write(records) -> arguments for the reader."""
    picture("images/coco/1.jpg")

    def made(records, name="llava.json"):
        path = tmp_path / name
        lines = "\n".join(json.dumps(record) for record in records)
        path.write_text(lines if name.endswith(".jsonl") else json.dumps(records))
        return {"annotations": str(path), "images": str(tmp_path / "images")}

    return made


@pytest.mark.parametrize("name", ["llava.json", "llava.jsonl"])
def test_one_question_and_its_answer_are_chosen(write, name):
    source = llava(**write([TALK], name))
    assert (source.name, len(source), source.skipped) == ("llava", 1, {})
    samples = [source.draw(0, RANDOM(seed)) for seed in range(9)]
    assert {(sample.conditions, sample.answer) for sample in samples} == {
        (("What is it?",), "A dog."),
        (("Old?",), "Young."),
    }
    assert all(sample.task == "chat" and sample.masks.shape == (0, 8, 12) for sample in samples)
    assert source.draw(0, RANDOM(3)).answer == source.draw(0, RANDOM(3)).answer


def test_conversations_make_a_training_batch(write, batch_of, tiny_processor):
    batch = batch_of(llava(**write([TALK])))
    said = [tiny_processor.tokenizer.decode(row[row >= 0]) for row in batch.token_labels]
    assert set(said) <= {"A dog.<|end|>", "Young.<|end|>"}


def test_records_that_cannot_be_used_are_left_out(write):
    records = [
        TALK,
        {"id": "8", "conversations": turns("Why?", "So.")},
        TALK | {"id": "9", "image": "coco/2.jpg"},
        TALK | {"id": "10", "conversations": turns("<image>\n", "A dog.")},
        TALK | {"id": "11", "conversations": turns("What?", "A <SEG>.")},
        TALK | {"id": "12", "conversations": turns("What?", "That.")[::-1]},
        TALK | {"id": "13", "conversations": []},
        {"image": "coco/1.jpg"},
        "text",
    ]
    source = llava(**write(records))
    assert len(source) == 1
    assert source.skipped == {
        "no image": ("8",),
        "image missing": ("9",),
        "malformed annotation": ("10", "12", "13", "record 7", "record 8"),
        "reserved words in a text": ("11",),
    }


def test_wrong_files_are_errors_that_say_so(write):
    with pytest.raises(ValueError, match="expected conversations, a list of records; found dict"):
        llava(**write({"id": 1}))
    with pytest.raises(ValueError, match=r"all 1 were left out: no image: 1 \(8\)"):
        llava(**write([{"id": "8", "conversations": []}]))
