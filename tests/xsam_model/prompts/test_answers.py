"""Generated text becomes plain words, with the places of its phrases."""

import pytest

from xsam_model.prompts.answers import read_caption

SPECIAL = ["<|end|>", "<|user|>"]


@pytest.mark.parametrize(
    ("raw", "text", "phrases"),
    [
        ("A <p>dog</p> sees <p>a cat</p>. <SEG><|end|>", "A dog sees a cat.", ["dog", "a cat"]),
        ("<p>A dog</p> runs. Sure, it is <SEG>.<|end|>", "A dog runs.", ["A dog"]),
        ("Because it is round and 3.5 m wide. It is 0.5 or <SEG>.", "Because it is round and 3.5 m wide.", []),
        ("It is <SEG>.<|end|>", "", []),
        ("It is <SEG>. It holds water.", "It holds water.", []),
        ("The <p>dog</p> here <SEG>.", "The dog here .", ["dog"]),
        ("  A <p> big  dog </p>\n runs .<SEG> ", "A big dog runs .", ["big dog"]),
        ("Two <SEG> and <SEG> words", "and words", []),
        ("<p>open and </p> closed</p>, <p>never", "open and closed, never", ["open and"]),
        ("<p>a <p>b</p> c</p>", "a b c", ["a b"]),
        ("c</p> and <p>a</p>. <SEG>", "c and a.", ["a"]),
        ("The <p>dog</p> is <SEG>. A <p>cat</p>.", "The dog is . A cat.", ["dog", "cat"]),
        ("No marks at all", "No marks at all", []),
        ("<p></p>nothing", "nothing", [""]),
        ("", "", []),
    ],
)
def test_marks_go_and_phrases_keep_their_places(raw, text, phrases):
    caption = read_caption(raw, SPECIAL)
    assert caption.text == text
    assert [phrase.text for phrase in caption.phrases] == phrases
    assert all(text[phrase.start : phrase.end] == phrase.text for phrase in caption.phrases)
