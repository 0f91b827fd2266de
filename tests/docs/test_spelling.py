"""Spelling is American, in code as in prose."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
BRITISH = re.compile(
    r"abell(ed|ing)|colour|\bcentre|_centre|centring|normalis|neighbour|tokenis|recognis|licence|serialis(?!t)"
    r"|initialis(?!t)|summaris|minimis|maximis|honour|behaviour|favour|travelled|\bgrey",
    re.IGNORECASE,
)
SUFFIXES = (".py", ".md", ".toml", ".j2", ".sh", ".yaml")
OUTPUTS = ROOT / "tests" / "outputs"
OTHERS = (Path(__file__), ROOT / "examples" / "CREDITS.md")
# What is stored keeps its name, and models the words that they learned.
KEPT = re.compile(r"labelled_now|black white grey gray|center centre upper|pink, grey|travelled in or on")


def test_spelling_is_american() -> None:
    folders = ("actors", "benchmarks", "docs", "examples", "findings", "flows", "pipelines", "tests", "xsam_model")
    files = [file for name in folders for file in (ROOT / name).rglob("*")] + list(ROOT.glob("*"))
    files = [file for file in files if file.suffix in SUFFIXES and file not in OTHERS and OUTPUTS not in file.parents]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {match[0]}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if (match := BRITISH.search(KEPT.sub("", line)))
    ]
    assert found == []
