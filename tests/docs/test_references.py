"""What README and docs/ point at exists: links and their headings, files, tests, modules, and commands in a line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs import address
from tests.docs.blocks import DOCUMENTS
from tests.docs.shell import parse_ours
from tests.support.drivers import REPOSITORY

_FENCED = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FOLDERS = (*address.PACKAGES, "docs", "examples", "findings")
_MODULE = re.compile(rf"(?:{'|'.join(address.PACKAGES)})(?:\.\w+)+")
_FILE = re.compile(rf"(?:{'|'.join(_FOLDERS)})/[\w./-]*")
_TEST = re.compile(r"(?:\S*/)?test_\w+\.py")

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))


def _prose(path: Path) -> str:
    return _FENCED.sub("", path.read_text())


def _anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings)
    return {heading.lower().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize(
    "path",
    [*DOCUMENTS, *(REPOSITORY / name for name in ("CHANGELOG.md", "benchmarks/RESULTS.md", "examples/CREDITS.md"))],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    broken = []
    for target in _LINK.findall(_prose(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = (path.parent / name).resolve() if name else path
        if not page.exists() or (anchor and anchor not in _anchors(page)):
            broken.append(target)
    assert not broken


@each_document
def test_files_tests_and_modules_that_are_named_exist(path: Path) -> None:
    broken = []
    for code in _CODE.findall(_prose(path)):
        word = code.partition("::")[0]
        if _TEST.fullmatch(word):
            name = Path(word).name
            if not (any(REPOSITORY.glob(f"tests/**/{name}")) and ("/" not in word or (REPOSITORY / word).exists())):
                broken.append(code)
        elif _MODULE.fullmatch(word):
            try:
                address.check(word)
            except AssertionError:
                broken.append(code)
        elif _FILE.fullmatch(word) and "NAME" not in word and not (REPOSITORY / word).exists():
            broken.append(code)
    assert not broken


@each_document
def test_commands_in_a_line_are_ones_that_exist(path: Path) -> None:
    broken = []
    for code in _CODE.findall(_prose(path)):
        if not code.startswith("xsam-label ") or "..." in code:
            continue
        try:
            parse_ours(code.split()[1:])
        except Exception as error:
            # It may be named with less than it needs to run: `xsam-label run`.
            if not re.search("Missing|requires an argument", str(error)):
                broken.append(f"{code}: {error}")
    assert not broken


def test_the_tree_of_the_readme_is_that_of_the_folders() -> None:
    (tree,) = re.findall(r"```text\n(xsam_model/.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    told: dict[str, set[str]] = {}
    package = ""
    for line in tree.splitlines():
        names = re.findall(r"(\w+)/(?=\s)", line)
        if line.startswith(" "):
            told[package] |= set(names)
        else:
            package = names[0]
            told |= {name: set() for name in names}
    for package in ("xsam_model", "pipelines", "actors", "flows"):
        assert told[package] == {path.parent.name for path in (REPOSITORY / package).glob("*/__init__.py")}, package
    assert all((REPOSITORY / name).is_dir() for name in told)


def test_the_list_of_documents_names_each_page() -> None:
    text = (REPOSITORY / "docs" / "README.md").read_text()
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\(([\w-]+\.md)\)", text))
