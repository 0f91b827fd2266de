"""Read current captions and answers for a report, cut at their grounded phrases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

_WORDS = """
SELECT image_id, said.prompt_id, said.task, said.text, said.phrases
FROM (SELECT image_id, unnest(captions) AS said FROM images WHERE image_id IN (SELECT unnest(?)))
ORDER BY image_id, said.task = 'gcgseg' DESC, said.prompt_id
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrase:
    """A stretch of a caption; ``number`` is that of a grounded phrase, None for the text between phrases."""

    text: str
    number: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A caption or answer, split into plain text and grounded phrases; with the prompt's id and task."""

    image_id: str
    prompt_id: str
    task: str
    stretches: tuple[Phrase, ...]


def current_words(database: duckdb.DuckDBPyConnection, number: int) -> list[Said]:
    """Choose images with captions or answers, and return a current one for each: a caption if there is one.

    Args:
        database: the output's database, see pipelines.query.database.
        number: number of images.
    """
    query = "SELECT image_id FROM all_images WHERE len(captions) > 0 GROUP BY 1 ORDER BY md5(image_id), 1 LIMIT ?"
    ids = [row[0] for row in database.execute(query, [number]).fetchall()]
    rows = database.execute(_WORDS, [ids]).fetchall() if ids else []
    first: dict[str, Said] = {}
    for image_id, prompt_id, task, text, phrases in rows:
        stretches = _stretches(text or "", phrases or ())
        first.setdefault(image_id, Said(image_id=image_id, prompt_id=prompt_id, task=task, stretches=stretches))
    return [first[image_id] for image_id in ids if image_id in first]


def _stretches(text: str, phrases: Sequence[Mapping[str, Any]]) -> tuple[Phrase, ...]:
    """Cut a caption at its phrases; phrases that overlap an earlier one or lie outside the text are left out."""
    found, place = list[Phrase](), 0
    for phrase in sorted(phrases, key=lambda p: (p["start"], p["end"])):
        start, end = phrase["start"], min(phrase["end"], len(text))
        if not place <= start < end:
            continue
        if start > place:
            found.append(Phrase(text=text[place:start], number=None))
        found.append(Phrase(text=text[start:end], number=phrase["category_id"]))
        place = end
    if place < len(text):
        found.append(Phrase(text=text[place:], number=None))
    return tuple(found)
