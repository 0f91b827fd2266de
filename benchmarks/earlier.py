"""How fast the models of this checkout label, and in what memory, beside the default one of an earlier checkout.

``EARLIER=PATH python -m benchmarks --only earlier``: a process for each model, with the packages of this environment,
all on the same pictures. Without EARLIER the models of this checkout are compared with each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median

from actors.predictor.config import INCLUDED_MODELS
from benchmarks.peers.job import names
from benchmarks.photos import example_photos
from benchmarks.report import Figure, Report
from benchmarks.tiny_rate import SCENES

NAME = "earlier"
_ROOT = Path(__file__).parents[1]
_CHILD = Path(__file__).with_name("earlier_child.py")
_ROUNDS = 7

# What a round of each model told, by model.
Rounds = dict[str, list[dict[str, float]]]


def run(*, tiny: bool = False) -> Report:
    """Label photographs and scenes with each model in turn, round after round."""
    models = {name: (_ROOT, name) for name in INCLUDED_MODELS}
    if earlier := os.environ.get("EARLIER"):
        models = {"the earlier model": (Path(earlier).resolve(), ""), **models}
    pictures = {"photographs": example_photos(), "scenes": sorted(SCENES.glob("*.png"))}
    figures = list[Figure]()
    for what, paths in pictures.items():
        figures += _figures(what, _measure(models, paths[: 1 if tiny else None], 1 if tiny else _ROUNDS))
    return Report(
        name=NAME,
        question="how fast are the models beside those of an earlier checkout?",
        method=(
            "`predict` on decoded images, eight at a time, in a process for each model, which compute one after the "
            "other in each round; torch on one thread. Figures are medians of the rounds, ratios of processor time "
            "those of neighbors in time. Memory is the most that a process held."
        ),
        setup={
            "pictures": ", ".join(f"{len(paths)} {what}" for what, paths in pictures.items()) + ", of examples/",
            "asked": f"{len(names())} names",
            "rounds": str(_ROUNDS),
            "load average at the end": f"{os.getloadavg()[0]:.1f}",
        },
        figures=tuple(figures),
    )


def _measure(models: dict[str, tuple[Path, str]], paths: list[Path], rounds: int) -> Rounds:
    """Ask each model for a round, so many times."""
    with ExitStack() as stack:
        labelers = {name: stack.enter_context(closing(_Labeler(*which, paths))) for name, which in models.items()}
        told: Rounds = {name: [] for name in models}
        for _ in range(rounds):
            for name, labeler in labelers.items():
                told[name].append(labeler.round())
    return told


class _Labeler:
    """A process that labels the same pictures in each round.

    Args:
        checkout: whose code it runs.
        model: as for PredictorConfig.path; "" for that checkout's default.
        paths: the pictures.
    """

    def __init__(self, checkout: Path, model: str, paths: list[Path]) -> None:
        asked = {"model": model, "names": names(), "paths": [str(path) for path in paths]}
        # -P: modules of the checkout only, none beside the program.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_CHILD), json.dumps(asked)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._hear()

    def round(self) -> dict[str, float]:
        """Label all pictures once; processor seconds and masks for each, and MB at the peak so far."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{_CHILD.name} ended with exit code {self._process.wait()}")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _figures(what: str, told: Rounds) -> list[Figure]:
    figures, first = [], next(iter(told))
    for name, rounds in told.items():
        rates = tuple(1 / one["seconds"] for one in rounds)
        figures.append(Figure(what=f"{what}: {name}, one core", value=median(rates), unit="images/s", repeats=rates))
        figures.append(Figure(what=f"{what}: {name}, masks of a picture", value=rounds[-1]["masks"], unit="masks"))
        figures.append(Figure(what=f"{what}: {name}, peak memory", value=rounds[-1]["peak_mb"], unit="MB"))
    for name, rounds in list(told.items())[1:]:
        ratios = tuple(base["seconds"] / one["seconds"] for one, base in zip(rounds, told[first], strict=True))
        figures.append(Figure(what=f"{what}: {name} : {first}", value=median(ratios), unit="x", repeats=ratios))
    return figures
