"""The fingerprint of a run: every setting that can change a row. Resuming with another fingerprint is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipelines.errors import PlanError

_MAX = 80
IMPORT = "import"
"""The field of a run that holds what a person has corrected: which file it was, and how it was read."""


RELABEL = "relabel"
"""The field of a run that labels images of the output again: which ones, by a condition."""


def lists_source(fingerprint: Mapping[str, Any]) -> bool:
    """Return whether a run labels what its source lists: no import, and nothing that labels some of it again."""
    return all(fingerprint.get(name) is None for name in ("retry", RELABEL, IMPORT))


def relabeled(plan: Mapping[str, Any]) -> str | None:
    """Return which images of the output a run labels again, in SQL without the values; None if it is no such run.

    Args:
        plan: a parsed plan.
    """
    if plan.get("fingerprint", {}).get(RELABEL) is None:
        return None
    return str((plan.get("facts", {}).get("config", {}).get(RELABEL) or {}).get("condition", ""))


def fingerprint_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a fingerprint's canonical JSON."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_fingerprint(
    run_id: str,
    planned: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    *,
    names: Mapping[str, tuple[str | None, str | None]] | None = None,
) -> None:
    """Refuse to resume a run with another config.

    Args:
        run_id: the run.
        planned: its fingerprint as planned.
        fingerprint: that of the config.
        names: of fields that are hashes, what was hashed, as planned and now, to show in their place.

    Raises:
        PlanError: the fingerprints differ; the message gives each differing field with both values.
    """
    # Through JSON, as the planned one went: otherwise a tuple would differ from the list that it was stored as.
    theirs, ours = dict(planned), json.loads(json.dumps(dict(fingerprint)))
    differing = [name for name in sorted(theirs | ours) if theirs.get(name) != ours.get(name)]
    if differing:
        shown = names or {}
        lines = [
            f"  {name}: {_renamed(*shown[name]) if name in shown else _changed(theirs.get(name), ours.get(name))}"
            for name in differing
        ]
        raise PlanError(
            f"the output holds run {run_id!r}, planned with another configuration. These fields differ:\n"
            + "\n".join(lines)
            + "\nRestore them to resume it, give another run id (--run-id) to add a run beside it, ask only what is "
            "new with --incremental, or choose another output."
        )


def model_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that affect how any prompt is answered: the model, the limits on images, and tiles."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] in ("model", "decode", "tiles")}


def source_part(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that decide which image an id stands for: the source settings, without those not set."""
    return {name: value for name, value in fingerprint.items() if name.split(".")[0] == "source" and value is not None}


def _renamed(planned: str | None, now: str | None) -> str:
    return _changed(planned, now) if planned != now else f"{_short(now)} as planned, but its content has changed"


def _changed(planned: object, now: object) -> str:
    """Tell both values; of lists too long for that, what was added and removed."""
    if (
        isinstance(planned, list)
        and isinstance(now, list)
        and max(len(json.dumps(planned)), len(json.dumps(now))) > _MAX
    ):
        added, removed = (
            [item for item in one if item not in other] for one, other in ((now, planned), (planned, now))
        )
        if added or removed:
            return f"planned {len(planned):,}, now {len(now):,}: added {_short(added)}, removed {_short(removed)}"
    return f"planned {_short(planned)}, now {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX else f"{text[: _MAX - 3]}..."
