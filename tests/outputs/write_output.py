"""Writes a small output with whichever version of this project is on PYTHONPATH; README.md says which were used.

Real listing, plan, labelling, commits and summary; the model is that version's visible fake. An output that is to stay
unfinished loses its driver in the middle of the second shard.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from unittest import mock

import fsspec

from actors.pool.in_process import InProcessRunner
from actors.predictor.labeler import RunLabeler
from flows.config import RunConfig, parse_config
from flows.run import engine, planning
from flows.run.observer import Silent
from pipelines.labeling.shard import LabelJob
from tests.support.fakes import BrightPredictor, half_bright, png

SOURCE = "memory://photos"
RUN = "run-1"
VALUES = {
    "source": SOURCE,
    "output": {"uri": "labels", "run_id": RUN},
    "model": {"path": "model"},
    "categories": ["bright", "light"],
    "plan": {"images_per_shard": 2},
    "pool": {"runner": "in_process", "shards_in_flight_per_replica": 1},
}


class DyingPredictor(BrightPredictor):
    """Takes its process along when it is asked the second time."""

    def predict(self, images: Any, prompts: Any) -> Any:
        if self.calls:
            os._exit(9)
        return super().predict(images, prompts)


def write_photos() -> None:
    """Write five images, the second of them broken."""
    files = fsspec.filesystem("memory")
    for number in range(5):
        data = png(half_bright(width=20 + number, height=12 + number % 3, bright_columns=1 + 2 * number))
        files.pipe_file(f"/photos/{number:04d}.png", b"no image" if number == 1 else data)


def main(kind: str) -> None:
    """Write ``labels`` into the working folder: "finished" or "unfinished"."""
    write_photos()
    predictor = BrightPredictor() if kind == "finished" else DyingPredictor()

    def open_runner(config: RunConfig, run_id: str, *numbered: Any) -> InProcessRunner:
        # Prompts have had another name, and since they have numbers they are handed over.
        prompts = config.common_prompts() if hasattr(config, "common_prompts") else config.prompts()
        prompts = numbered[0] if numbered else prompts
        job = LabelJob(run_id=run_id, prompts=prompts, config=config.label)
        return InProcessRunner(lambda: RunLabeler(predictor, job, config.output.uri), config.pool)

    def fingerprint(config: RunConfig, *_: object) -> dict[str, Any]:
        # The table of prompts has had two names.
        try:
            return config.fingerprint(model_sha256="0" * 64, prompts_sha256=None)
        except TypeError:
            return config.fingerprint(model_sha256="0" * 64, visual_prompts_sha256=None)

    with (
        mock.patch.object(planning, "open_run_runner", open_runner),
        mock.patch.object(planning, "check_model", lambda _config, *own: own[0] if own else None),
        mock.patch.object(planning, "run_fingerprint", fingerprint),
    ):
        print(engine.run_directly(parse_config(VALUES), Silent()))


if __name__ == "__main__":
    main(sys.argv[1])
