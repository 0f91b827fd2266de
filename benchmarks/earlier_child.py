"""Labels pictures for `benchmarks.earlier`: one process, one checkout, one model, a round for each line that it reads.

It is run by its path, with PYTHONPATH naming the checkout, whose modules have other names in earlier ones.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

_BATCH = 8


def main(model: str, names: list[str], paths: list[str]) -> None:
    """Load a model and pictures, say so, and label them whenever a line is read."""
    torch.set_num_threads(1)
    ref, named_prompts = _find("ImageRef", "pipelines.types"), _find("named_prompts", "flows.prompts")
    decode = _find("decode_image", "pipelines.decode", "pipelines.images.decode")
    config = _find("PredictorConfig", "actors.config", "actors.predictor.config")
    images = [decode(Path(path).read_bytes(), ref(image_id=path, uri=path)) for path in paths]
    predictor = _find("XSamPredictor", "actors.predictor", "actors.predictor.predictor")(
        config(device="cpu", **({"path": model} if model else {}))
    )
    prompts = tuple(named_prompts("ovseg", names))

    def label() -> int:
        batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
        return sum(len(one.masks) for batch in batches for one in predictor.predict(batch, [prompts] * len(batch)))

    label()
    print("{}", flush=True)
    for _ in sys.stdin:
        started, masks = time.process_time(), label()
        seconds = time.process_time() - started
        told = {"seconds": seconds / len(images), "masks": masks / len(images), "peak_mb": _peak_mb()}
        print(json.dumps(told), flush=True)


def _find(name: str, *modules: str) -> Any:
    """Return what the first of these modules, earlier ones first, has under this name."""
    # The other way around, an editable installation would lend an earlier checkout the modules that it lacks.
    for module in modules[:-1]:
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    return getattr(importlib.import_module(modules[-1]), name)


def _peak_mb() -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
