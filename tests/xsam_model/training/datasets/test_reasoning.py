import json

import numpy as np
import pytest

from xsam_model.prompts.templates import QUESTIONS, REASEG_EXPLAIN_QUESTION
from xsam_model.training.datasets.reasoning import reasonseg

RANDOM = np.random.default_rng
# Outlines are drawn with their edge: x 2 to 7, y 1 to 5.
TARGET = {"label": "target", "labels": ["target"], "shape_type": "polygon", "points": [[2, 1], [7, 1], [7, 5], [2, 5]]}
IGNORE = TARGET | {"label": "ignore", "points": [[6.5, 0.9], [10, 0], [10, 7], [6, 7]]}
INNER = TARGET | {"label": "ignore", "points": [[3, 2], [4, 2], [4, 3], [3, 3]]}
FLAG = TARGET | {"label": "flag", "points": []}


@pytest.fixture
def write(tmp_path, picture):
    """Write a picture and its labelme file: write(name, text, shapes, is_sentence) -> their folder."""

    def made(name="a", text=("Which one barks?",), shapes=(TARGET,), is_sentence=True, encoding="utf-8"):
        picture(f"train/{name}.jpg")
        content = {"text": list(text), "is_sentence": is_sentence, "shapes": list(shapes)}
        (tmp_path / "train" / f"{name}.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
        return str(tmp_path / "train")

    return made


def test_a_question_has_one_mask_and_ignored_pixels(write, box_mask):
    source = reasonseg(write(shapes=[INNER, TARGET, FLAG]))
    assert (source.name, len(source), source.skipped) == ("reasonseg", 1, {})
    sample = source.draw(0, RANDOM(0))
    assert (sample.task, sample.conditions, sample.question, sample.answer) == (
        "reaseg",
        ("Which one barks?",),
        None,
        None,
    )
    inner = box_mask(3, 2, 2, 2)
    assert (sample.masks == (box_mask(2, 1, 6, 5) & ~inner)[None]).all()
    assert (sample.ignore == inner).all()
    assert sample.labels.tolist() == [0]


def test_the_smaller_shape_counts_where_two_overlap(write, box_mask):
    sample = reasonseg(write(shapes=[TARGET | {"points": [[0, 0], [11, 0], [11, 7], [0, 7]]}, IGNORE])).draw(
        0, RANDOM(0)
    )
    assert not (sample.masks[0] & sample.ignore).any()
    assert (sample.masks[0] | sample.ignore).all()
    assert sample.ignore[7, 6:11].all()


def test_any_wording_of_a_question_is_asked(write):
    source = reasonseg(write(text=["Which one barks?", "Who guards the house?"]))
    assert {source.draw(0, RANDOM(seed)).conditions[0] for seed in range(9)} == {
        "Which one barks?",
        "Who guards the house?",
    }


def test_sentences_and_phrases_can_be_told_apart(write):
    write("a", is_sentence=True)
    folder = write("b", text=["the one that barks"], is_sentence=False)
    write("c", text=["tell me which one barks"], is_sentence=True)
    assert [len(reasonseg(folder, texts=kind)) for kind in ("all", "sentence", "phrase")] == [3, 2, 1]
    source = reasonseg(folder)
    assert source.draw(1, RANDOM(0)).question is None
    # Without a mark at its end it would be asked as a phrase.
    assert source.draw(2, RANDOM(0)).question == QUESTIONS["reaseg"]


def test_some_samples_ask_for_the_explanation(write, tmp_path, batch_of):
    folder = write()
    path = tmp_path / "explanatory.json"
    path.write_text(json.dumps([{"image": "a.jpg", "query": "Who barks?", "outputs": "The dog barks."}, {"image": 1}]))
    asked = reasonseg(folder, explanations=str(path), explain_share=1.0)
    assert asked.skipped == {"malformed annotation": ("explanation 1",)}
    sample = asked.draw(0, RANDOM(0))
    assert (sample.conditions, sample.question) == (("Who barks?",), REASEG_EXPLAIN_QUESTION)
    assert sample.answer == "The dog barks. It is <SEG>."
    assert len(batch_of(asked).targets.masks) == 2
    assert reasonseg(folder, explanations=str(path), explain_share=0.0).draw(0, RANDOM(0)).answer is None


def test_bad_records_are_left_out(write, picture, tmp_path):
    folder = write("good", text=["Où est-il?"], encoding="cp1252")
    write("b", shapes=[INNER])
    write("c", shapes=[TARGET | {"points": [[1, 1], [2, 2]]}])
    write("d", text=[""])
    write("e")
    (tmp_path / "train" / "e.jpg").unlink()
    write("f")
    (tmp_path / "train" / "f.json").write_text("{")
    write("g", shapes=[TARGET | {"points": [[100, 100], [120, 100], [120, 120]]}])
    picture("train/h.jpg")
    source = reasonseg(folder)
    assert source.skipped == {
        "nothing annotated": ("b",),
        "malformed annotation": ("c", "d", "f"),
        "image missing": ("e",),
    }
    assert len(source) == 2
    assert source.draw(0, RANDOM(1)).conditions == ("Où est-il?",)
    assert source.skipped["malformed annotation"] == ("c", "d", "f", "g")


def test_wrong_settings_are_refused(write, tmp_path):
    with pytest.raises(ValueError, match="texts must be one of all, sentence, phrase"):
        reasonseg(write(), texts="words")
    with pytest.raises(ValueError, match="explain_share 0 to 1"):
        reasonseg(write(), explain_share=2.0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"reasonseg: no usable record in .*empty \(it holds none\)"):
        reasonseg(str(tmp_path / "empty"))
