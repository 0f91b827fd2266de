"""What do earlier runs cost an update? Requests to the store, counted, night after night through the real run."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from actors.pool.in_process import InProcessRunner
from actors.predictor.labeler import RunLabeler
from benchmarks.orchestration import _png
from benchmarks.report import Figure, Report
from benchmarks.threshold_predictor import ThresholdPredictor
from flows.config import RunConfig, parse_config
from flows.run import engine, planning, updates
from flows.run.observer import Silent
from pipelines.labeling.shard import LabelJob
from pipelines.storage.store import Store
from pipelines.types import Prompt

NAME = "history"
_FEW = 10
# Each is one request; a listing is one for a thousand objects, of which no output here has more.
_REQUESTS = ("read", "exists", "size", "find", "folders", "files", "create", "write", "delete")


def run(*, tiny: bool = False) -> Report:
    """Label one image more every night, and count."""
    nights = 25 if tiny else 365
    counts = nightly_requests(nights)
    few = counts[_FEW - 1]
    # Runs are gathered every tenth night or so: what a night costs depends on where it stands between two of these.
    last = counts[-updates.GATHERED_AFTER - 1 :]
    usual, most = sorted(last)[len(last) // 2], max(last)
    return Report(
        name=NAME,
        question="what do earlier runs cost an update?",
        method=(
            "A folder gets an image every night, and an incremental run labels it: the real planning, commits and "
            "verification on local disk, with a predictor that costs nothing. Every request to the store is counted; "
            "each waits for the one before it, so on S3 each adds its latency."
        ),
        setup={"nights": f"{nights}", "runs": "in this process"},
        figures=(
            Figure(what="requests after ten nights", value=few, unit="requests"),
            Figure(what=f"requests after {nights} nights: median of a round", value=usual, unit="requests"),
            Figure(what=f"requests after {nights} nights : after ten", value=usual / few, unit="times"),
            Figure(what="the night that gathers the ones before it : after ten", value=most / few, unit="times"),
        ),
    )


def nightly_requests(nights: int) -> list[int]:
    """Return how many requests each night's run made."""
    found = list[int]()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        (source := Path(folder) / "photos").mkdir()
        config = parse_config(
            {
                "source": str(source),
                "output": f"{folder}/out",
                "model": {"path": "none"},
                "categories": ["thing"],
                "incremental": True,
                "label": {"load_threads": 1},
                "pool": {"runner": "in_process"},
            }
        )

        def runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> InProcessRunner:
            job = LabelJob(run_id=run_id, prompts=prompts, config=config.label)
            return InProcessRunner(lambda: RunLabeler(ThresholdPredictor(), job, config.output.uri), config.pool)

        for name, value in {
            "open_run_runner": runner,
            "check_model": lambda _config, own: own,
            "run_fingerprint": lambda config, _held: config.fingerprint(model_sha256="0" * 64, prompts_sha256=None),
        }.items():
            stack.enter_context(patch.object(planning, name, value))
        for night in range(nights):
            (source / f"{night:04}.png").write_bytes(_png())
            with _counted() as counts:
                engine.run_directly(config, Silent())
            found.append(counts.total())
    return found


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    counts = Counter[str]()

    def counting(name: str, real: Any) -> Any:
        def call(self: Store, *args: Any) -> Any:
            counts[name] += 1
            return real(self, *args)

        return call

    with ExitStack() as stack:
        for name in _REQUESTS:
            stack.enter_context(patch.object(Store, name, counting(name, getattr(Store, name))))
        yield counts
