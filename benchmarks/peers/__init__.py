"""The same job under the engines that people would pick, each written as its own documentation advises.

``job`` is what they share; ``loop``, ``hf_datasets``, ``ray_data`` and ``daft_udf`` are the engines, each a program of
its own, and ``compare`` runs them and this project in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the engines import this package, and need none of it
    from benchmarks.report import Report


def run(*, tiny: bool = False) -> Report:
    """Run all engines in turn."""
    from benchmarks.peers.compare import run as compare

    return compare(tiny=tiny)
