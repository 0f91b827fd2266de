"""The fingerprint of a run: everything that can change a row, by name; a resume under another config is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines.errors import PlanError


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_fingerprint(run_id: str, planned: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    """Refuse to resume a run under another config.

    Raises:
        PlanError: naming each field that differs with both values.
    """
    theirs, ours = dict(planned), json.loads(json.dumps(dict(fingerprint)))
    differing = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]
    if differing:
        lines = [f"  {name}: planned {_short(theirs.get(name))}, now {_short(ours.get(name))}" for name in differing]
        raise PlanError(
            f"the output holds run {run_id!r}, planned with another configuration. These fields differ:\n"
            + "\n".join(lines)
            + "\nRestore them to resume it, give another run id to add a run beside it, or choose another output."
        )


def model_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides how a prompt is answered, whichever it is: the model, and the limits on images."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] in ("model", "decode")}


def source_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides which image an id stands for: the source, and how its images are named; what is set of it."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] == "source" and value is not None}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
