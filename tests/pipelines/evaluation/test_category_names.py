"""Which name of a run is compared with which category of a truth."""

from __future__ import annotations

import pytest

from pipelines.errors import SourceError
from pipelines.evaluation.category_names import CountedNames, clean_name


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("Cell-Phone", "cell phone"),
        ("wall-other-merged", "wall"),
        ("sky-stuff", "sky"),
        (" Red  Car ", "red car"),
        ("traffic_light", "traffic light"),
        ("Cafe\u0301", "caf\u00e9"),
        ("off-stuffing", "off stuffing"),
        ("other-merged-car", "other merged car"),
        ("Wall-Other", "wall"),
        ("-other", "other"),
    ],
)
def test_names_are_compared_cleaned(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("true", "asked", "pairs", "words"),
    [
        # Names that are equal are one category, whatever else they look like.
        (["Dog", "dog"], ["dog", "Dog"], {"dog": "dog", "Dog": "Dog"}, []),
        (
            ["umbrella", "umbrella-other"],
            ["umbrella"],
            {"umbrella": "umbrella"},
            ["never asked, left out: umbrella-other"],
        ),
        (
            ["umbrella", "umbrella-other"],
            ["umbrella", "umbrella-other"],
            {"umbrella": "umbrella", "umbrella-other": "umbrella-other"},
            [],
        ),
        # The nearer spelling comes first.
        (["umbrella", "umbrella-other"], ["Umbrella"], {"Umbrella": "umbrella"}, ["compared: Umbrella with umbrella"]),
        (["window "], ["window"], {"window": "window "}, ["compared: window with window"]),
        (["wall-other-merged"], ["wall"], {"wall": "wall-other-merged"}, ["compared: wall with wall-other-merged"]),
        # Nobody can say which: left out and told.
        (
            ["umbrella-other", "umbrella-stuff", "cat"],
            ["umbrella", "cat"],
            {"cat": "cat"},
            ["1 name fits categories of the truth in several ways, left out: umbrella could be umbrella-other or um"],
        ),
        (
            ["dog", "cat"],
            ["Dog", "DOG", "cat"],
            {"cat": "cat"},
            ["2 names fit categories of the truth in several ways, left out: Dog could be dog, DOG could be dog"],
        ),
        # What another name has exactly is taken.
        (["dog"], ["dog", "Dog"], {"dog": "dog"}, ["1 name is no category of the truth, left out: Dog"]),
        (["off-stuffing", "offing"], ["offing"], {"offing": "offing"}, ["never asked, left out: off-stuffing"]),
    ],
)
def test_exact_names_come_first_and_only_what_is_unambiguous_is_compared_cleaned(
    true: list[str], asked: list[str], pairs: dict[str, str], words: list[str]
) -> None:
    notes: list[str] = []
    names = CountedNames.of("ovseg", true, asked, False, notes)
    assert {name: names.of_found(name) for name in asked if names.of_found(name)} == pairs
    assert {name for name in true if names.is_counted(name)} == set(pairs.values())
    assert all(any(word in note for note in notes) for word in words), notes
    assert bool(words) or not notes


def test_categories_that_were_never_asked_can_count() -> None:
    notes: list[str] = []
    names = CountedNames.of("ovseg", ["cat", "dog"], ["cat"], True, notes)
    assert names.is_counted("dog")
    assert notes == ["ovseg: 1 category of the truth was never asked, not found: dog"]


def test_nothing_in_common_shows_both_sides() -> None:
    with pytest.raises(
        SourceError, match=r"none of the 1 name asked \(bird\) is one of the 2 categories .*\(cat, dog\)"
    ):
        CountedNames.of("ovseg", ["cat", "dog"], ["bird"], False, [])


def test_names_with_commas_are_told_apart_in_notes() -> None:
    notes: list[str] = []
    CountedNames.of("ovseg", ["cat", "bowl, glass", 'the "big" one'], ["cat", "cup, red"], False, notes)
    assert 'ovseg: 1 name is no category of the truth, left out: "cup, red"' in notes
    assert any(note.endswith('left out: "bowl, glass", "the ""big"" one"') for note in notes)
