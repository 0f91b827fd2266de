"""Plot an evaluation with matplotlib: precision over recall, and the figure of each category."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.errors import SourceError
from pipelines.evaluation.evaluate import Evaluation, TaskFigures

_MAX_CATEGORIES = 40
_OF_CATEGORIES = ("AP", "PQ", "IoU")


def figure_class() -> Any:
    """Import matplotlib's Figure class. It draws without pyplot, whose global state needs a display backend.

    Raises:
        SourceError: matplotlib is not installed.
    """
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise SourceError(
            f"plots are drawn by matplotlib, which is not there ({error}): pip install 'xsam-label[plots]'"
        ) from error


def write_plots(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write the plots of an evaluation to an existing folder.

    ``<task>-precision-recall.png`` for tasks with AP, ``<task>-scores.png`` for those with decisions (precision, recall
    and F1 over the least score that is kept), ``<task>-categories.png`` for tasks with figures by category, with the
    group's name, if any, after the task's.

    Returns:
        The new files, in the order of the results.

    Raises:
        SourceError: matplotlib is not installed.
    """
    files = []
    for result in evaluation.results:
        name = f"{result.task}-{result.group}" if result.group else result.task
        if result.curves:
            files.append(folder / f"{name}-precision-recall.png")
            _draw_curves(result, files[-1])
        if result.scores:
            files.append(folder / f"{name}-scores.png")
            _draw_scores(result, files[-1])
        held = {name for figures in result.categories.values() for name, value in figures.items() if value is not None}
        shown = next((figure for figure in _OF_CATEGORIES if figure in held), None)
        if shown:
            files.append(folder / f"{name}-categories.png")
            _draw_categories(result, shown, files[-1])
    return files


def _title(result: TaskFigures) -> str:
    return f"{result.task} {result.group}".strip()


def _draw_curves(result: TaskFigures, path: Path) -> None:
    lines = {
        f"{name} {100 * (result.figures[name] or 0):.1f}": (np.linspace(0, 1, len(curve)), curve)
        for name, curve in result.curves.items()
    }
    _draw_lines(path, lines, xlabel="recall", ylabel="precision", title=_title(result))


def _draw_scores(result: TaskFigures, path: Path) -> None:
    scores = [step["score"] for step in result.scores]
    lines = {name: (scores, [step[name] for step in result.scores]) for name in ("precision", "recall", "F1")}
    _draw_lines(path, lines, xlabel="least score that is kept", title=f"{_title(result)} at IoU 0.5")


def _draw_lines(path: Path, lines: Mapping[str, tuple[Any, Any]], **labels: str) -> None:
    canvas = figure_class()(figsize=(5, 4), layout="constrained")
    axes = canvas.subplots()
    for name, (along, up) in lines.items():
        axes.plot(along, up, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), **labels)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    canvas.savefig(path, dpi=120)


def _draw_categories(result: TaskFigures, figure: str, path: Path) -> None:
    """Draw a bar for each category, best first; of many categories only the best and the worst."""
    held = ((name, figures.get(figure)) for name, figures in result.categories.items())
    values = sorted(((name, value) for name, value in held if value is not None), key=lambda pair: (-pair[1], pair[0]))
    title = f"{_title(result)}: {figure} by category"
    if len(values) > _MAX_CATEGORIES:
        title += f" ({_MAX_CATEGORIES // 2} best and worst of {len(values):,})"
        values = values[: _MAX_CATEGORIES // 2] + values[-_MAX_CATEGORIES // 2 :]
    canvas = figure_class()(figsize=(6, 1.2 + 0.25 * len(values)), layout="constrained")
    axes = canvas.subplots()
    bars = axes.barh(range(len(values)), [value for _, value in values])
    axes.bar_label(bars, [f"{100 * value:.1f}" for _, value in values], padding=3, fontsize=8)
    # matplotlib would read the text between two dollar signs as a formula.
    axes.set_yticks(range(len(values)), [name[:40].replace("$", r"\$") for name, _ in values], fontsize=8)
    axes.set(xlim=(0, 1.1), title=title)
    axes.invert_yaxis()
    canvas.savefig(path, dpi=120)
