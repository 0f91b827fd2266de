"""Shell blocks of documents: each command is one that exists, with options that it has, and what can be run is run."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import typer
from sybil import Example

from flows.cli import app
from tests.support.commands import command
from tests.support.drivers import REPOSITORY

# Of others: their options are theirs to check.
_TOOLS = {"accelerate", "docker", "hf", "kubectl", "pip", "prefect", "ray"}
_PREFECT = {"run", "retry", "demo"}


def commands_of(source: str) -> Iterator[list[str]]:
    """Yield the commands of a shell text as words, without comments and with `...` left out."""
    for line in re.sub(r"\\\n\s*", " ", source).splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        for is_end, group in itertools.groupby(words, lambda word: not word.strip("&|;")):
            if not is_end and (told := [word for word in group if word != "..."]):
                yield told


def check_block(example: Example) -> None:
    """Look at each command without running it."""
    for words in commands_of(example.parsed):
        check_command(words)


def run_block(example: Example) -> None:
    """Run each command of ours in this folder; without a Prefect server, which has tests of its own."""
    for words in commands_of(example.parsed):
        check_command(words)
        if words[0] != "xsam-label":
            raise AssertionError(f"{shlex.join(words)} cannot be run in a test: mark the block by what it needs")
        ended = command(*words[1:], *(["--no-prefect"] if words[1] in _PREFECT else []))
        assert ended.code == 0, f"{shlex.join(words)}: {ended}"


def check_command(words: list[str]) -> None:
    """Check that a command exists and has these options.

    Raises:
        Exception: it does not.
    """
    program, *arguments = itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words)
    name = Path(program).name
    if name == "xsam-label":
        parse_ours(arguments)
    elif name.startswith("python"):
        _check_module(arguments)
    elif name == "make":
        targets = re.findall(r"^([\w./-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) <= set(targets), f"{arguments}: no targets of the Makefile"
    elif name == "export":
        assert all("=" in argument for argument in arguments), words
    elif name == "bash":
        assert list(REPOSITORY.glob(arguments[0].replace("NAME", "*"))), words
    else:
        assert name in _TOOLS | {"pre-commit"}, f"{name} is a tool that nobody here knows"
        if "--" in arguments:
            check_command(arguments[arguments.index("--") + 1 :])


def parse_ours(arguments: list[str]) -> None:
    """Parse the arguments of `xsam-label` with the real command line."""
    main = typer.main.get_command(app)
    if arguments[0].startswith("-"):  # before a command there are flags alone
        assert set(arguments) <= {"--help", *(flag for parameter in main.params for flag in parameter.opts)}
        return
    command = main
    while hasattr(command, "commands") and arguments:
        name, *arguments = arguments
        command = command.commands[name]
    command.make_context(name, arguments)


def source_of(module: str) -> Path:
    """Return the file of a module of ours that `python -m` runs; of a package that is no program its `__init__.py`."""
    path = REPOSITORY / module.replace(".", "/")
    for candidate in (path / "__main__.py", path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    raise AssertionError(f"there is no module {module}")


def _check_module(arguments: list[str]) -> None:
    dash_m, module, *rest = arguments
    if dash_m.startswith("examples/"):
        assert (REPOSITORY / dash_m).is_file(), f"there is no {dash_m}"
        return
    assert dash_m == "-m", arguments
    if module == "pytest":
        paths = [word for word in itertools.takewhile(lambda word: word != "-k", rest) if not word.startswith("-")]
        missing = [path for path in paths if not (REPOSITORY / path.partition("::")[0]).exists()]
        assert not missing, f"{missing}: no such tests"
        return
    if module == "venv":
        return
    script = source_of(module)
    assert script.name != "__init__.py", f"{module} is no program"
    text = "".join(path.read_text() for path in script.parent.glob("*.py"))
    missing = [word for word in rest if word.startswith("--") and f'"{word}"' not in text]
    assert not missing, f"{module} has no {missing}"
