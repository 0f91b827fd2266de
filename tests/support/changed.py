"""Which tests a change touches: `pytest --changed COMMIT`, by what the test modules import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("xsam_model", "pipelines", "actors", "flows", "benchmarks", "tests")


def changed_files(since: str, root: Path = ROOT) -> list[str]:
    """Return the files that differ from the last commit that a branch, or a commit, has in common with this one.

    Raises:
        ValueError: git knows no such commit.
    """

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.splitlines()

    (base,) = git("merge-base", since, "HEAD")
    return sorted({*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")})


def touched_tests(changed: Iterable[str], root: Path = ROOT) -> dict[Path, bool]:
    """Return the test modules that a change touches.

    A module touches what it imports, and what that imports in turn; a test module also the ``conftest.py`` of its
    folder and of those above. A file that is no module touches the modules beside it, and those that name it or its
    folder.

    Args:
        changed: files, relative to the root.
        root: of the repository.

    Returns:
        By path, whether it has changed itself or imports what has changed at first hand.
    """
    import grimp

    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    tests = {module: _path(module, root) for module in graph.modules if module.rpartition(".")[2].startswith("test_")}
    for module in tests:
        folder = module.rpartition(".")[0]
        while folder:
            if (conftest := f"{folder}.conftest") in graph.modules:
                graph.add_import(importer=module, imported=conftest)
            folder = folder.rpartition(".")[0]
    modules = set().union(*(_modules_of(name, graph.modules, root) for name in changed))
    direct, all_of_them = set(modules), set(modules)
    for module in modules:
        direct |= graph.find_modules_that_directly_import(module)
        all_of_them |= graph.find_downstream_modules(module)
    return {path: module in direct for module, path in tests.items() if module in all_of_them}


def _path(module: str, root: Path) -> Path:
    return root.joinpath(*module.split(".")).with_suffix(".py")


def _modules_of(name: str, modules: set[str], root: Path) -> set[str]:
    """Return the module that a changed file is, or the modules that a file of another kind is likely read by."""
    path = Path(name)
    folder = ".".join(path.parent.parts)
    if path.suffix == ".py":
        return {".".join(path.with_suffix("").parts).removesuffix(".__init__")} & modules
    beside = {module for module in modules if folder and module.rpartition(".")[0] == folder}
    words = (path.name, path.parent.name or path.name)
    sources = ((module, _path(module, root)) for module in modules if module.startswith("tests."))
    naming = {module for module, file in sources if file.is_file() and any(word in file.read_text() for word in words)}
    return beside | naming
