"""The code blocks of README and docs/, read by sybil: their language, what they need, and what runs them.

A block is marked by what follows its language, which no renderer shows: ```` ```bash needs=cluster,bucket ````.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from tests.support.drivers import REPOSITORY

DOCUMENTS = tuple(
    path
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "findings/README.md", "tests/simulation/README.md")
    for path in sorted(REPOSITORY.glob(pattern))
)
NEEDS = {
    "bucket": "an object store with the data",
    "catalog": "an Iceberg catalog",
    "cluster": "a Ray cluster or Kubernetes",
    "data": "data sets or pictures that are fetched first",
    "fiftyone": "FiftyOne, which brings a database server",
    "gpu": "a GPU",
    "minutes": "minutes of time",
    "network": "the network",
    "server": "a Prefect server",
    "weights": "released weights",
}
"""What a block may need that a test does not have, as it is written behind its language."""

Evaluate = Callable[[Example], None]

_INFO = re.compile(r"(?P<language>\S*)[ \t]*(?P<marks>[^\n]*)\n")
_LEXER = RawFencedCodeBlockLexer(_INFO)


def needs_of(marks: str) -> frozenset[str]:
    """Return what a block is marked to need.

    Raises:
        ValueError: the words behind its language are no such mark.
    """
    if not marks:
        return frozenset()
    name, _, values = marks.partition("=")
    needs = frozenset(values.split(","))
    if name != "needs" or not needs <= NEEDS.keys():
        raise ValueError(f"{marks!r} is no mark of a block: needs= and, with commas between them, of {sorted(NEEDS)}")
    return needs


def read(path: Path, run: Mapping[str, Evaluate], check: Mapping[str, Evaluate]) -> Document:
    """Read the blocks of a document.

    Args:
        path: of the document.
        run: by language, what runs a block.
        check: by language, what looks at a block that is marked to need more than a test has.
    """

    def parse(document: Document) -> Iterable[Region]:
        for region in _LEXER(document):
            needs, language = needs_of(region.lexemes["marks"]), region.lexemes["language"]
            evaluators = check if needs else run
            if language not in evaluators:
                line = document.text.count("\n", 0, region.start) + 1
                raise ValueError(f"{path}:{line}: no block of the language {language!r} is known here")
            region.parsed, region.evaluator = region.lexemes["source"], evaluators[language]
            yield region

    return Sybil(parsers=[parse]).parse(path)
