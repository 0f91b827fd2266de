"""WordNet's nouns: the senses of a name, and what they are kinds of. Reads the files of WordNet 3.0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# WordNet's files of nouns whose things can be seen in a picture: animals, artifacts, bodies, food, natural objects,
# people, phenomena, plants, shapes.
VISIBLE = frozenset({5, 6, 8, 13, 17, 18, 19, 20, 25})
PEOPLE = 18
_NOUN_KINDS = ("@", "@i")


@dataclass(slots=True)
class Nouns:
    """The nouns.

    Attributes:
        words: for each sense, by its place in the database, its words, lower case as they are written.
        kinds: for each sense the senses that it is a kind of.
        files: for each sense the number of WordNet's file that it is in.
        glosses: for each sense its definition.
        senses: for each word its senses, the most common first.
        common: words that were met in the texts in which WordNet's makers counted senses.
    """

    words: dict[str, list[str]] = field(default_factory=dict)
    kinds: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    glosses: dict[str, str] = field(default_factory=dict)
    senses: dict[str, list[str]] = field(default_factory=dict)
    common: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path) -> Nouns:
        """Read `data.noun` and `index.noun` of a folder.

        Raises:
            OSError: a file is missing.
        """
        nouns = cls()
        for line in _entries(folder / "data.noun"):
            head, _, gloss = line.partition("|")
            place, file, _, count, *rest = head.split()
            num_words = int(count, 16)
            pointers = rest[2 * num_words + 1 :]
            nouns.words[place] = [word.replace("_", " ") for word in rest[: 2 * num_words : 2]]
            nouns.files[place], nouns.glosses[place] = int(file), gloss.strip().split(";")[0]
            nouns.kinds[place] = [
                pointers[start + 1]
                for start in range(0, 4 * int(rest[2 * num_words]), 4)
                if pointers[start] in _NOUN_KINDS
            ]
        for line in _entries(folder / "index.noun"):
            word, _, count, *rest = line.split()
            nouns.senses[word.replace("_", " ")] = rest[-int(count) :]
            if int(rest[-int(count) - 1]):
                nouns.common.add(word.replace("_", " "))
        return nouns

    def visible_senses(self, name: str) -> list[str]:
        """Return the senses of a name that can be seen; of a name that WordNet lacks, those of its last word."""
        words = name.lower().split()
        for known in (" ".join(words), words[-1] if words else ""):
            if known in self.senses:
                return [sense for sense in self.senses[known] if self.files[sense] in VISIBLE]
        return []

    def above(self, sense: str) -> dict[str, int]:
        """Return all that a sense is a kind of, itself first, with the number of steps up to it."""
        steps = {sense: 0}
        for known in (queue := [sense]):
            for kind in self.kinds[known]:
                if kind not in steps:
                    steps[kind] = steps[known] + 1
                    queue.append(kind)
        return steps

    def names(self, most_words: int = 3) -> list[str]:
        """Return all visible senses' common words and first words, in lower case and without digits, sorted."""
        found = {
            word
            for sense, words in self.words.items()
            if self.files[sense] in VISIBLE
            for word in words
            if word in self.common or word == words[0]
        }
        return sorted(
            word
            for word in found
            if word == word.lower() and len(word.split()) <= most_words and not any(map(str.isdigit, word))
        )


def _entries(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        # The files begin with their license, whose lines are indented.
        yield from (line for line in file if not line.startswith("  "))
