"""Lay out a report's charts (histograms and rates) as rectangles and ticks, which the template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.report.run_facts import Work

WIDTH, HEIGHT = 360, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 24
_RATE_BINS = 60
_SHORT_RUN_S = 600  # times of shorter runs are shown with seconds
_GAP = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: its rectangle in the chart's units, and its label."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A tick on an axis: its position and its text."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A bar chart in a box of WIDTH x HEIGHT.

    Attributes:
        summary: a description for screen readers.
        bars: the bars.
        x_ticks, y_ticks: ticks at the bottom and on the left.
        x_name: label of the x axis.
    """

    summary: str
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_name: str = ""


def histogram(
    counts: Sequence[int], labels: Sequence[str], ticks: Sequence[tuple[float, str]], *, of: str, x_name: str
) -> Chart:
    """Lay out a histogram.

    Args:
        counts: count of each bin.
        labels: label of each bin.
        ticks: (edge, text) on the x axis; edge 0 is the left edge of the first bin.
        of: what is counted, e.g. "masks".
        x_name: label of the x axis.
    """
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(counts))
    named = [f"{label}: {count:,} {of}" for label, count in zip(labels, counts, strict=True)]
    most = max(range(len(counts)), key=counts.__getitem__, default=0)
    summary = f"Histogram of {sum(counts):,} {of} by {x_name}"
    return Chart(
        summary=f"{summary}; most of them, {counts[most]:,}, at {labels[most]}." if any(counts) else f"{summary}.",
        bars=_bars(counts, step, named),
        x_ticks=tuple(Tick(at=_LEFT + edge * step, text=text) for edge, text in ticks),
        y_ticks=_y_ticks(max(counts, default=0), whole=True),
        x_name=x_name,
    )


def sparkline(counts: Sequence[int], width: float, height: float) -> tuple[Bar, ...]:
    """Lay out a small histogram without axes in a box of the given size."""
    step, most = width / max(1, len(counts)), max(counts, default=0) or 1
    return tuple(
        Bar(x=number * step, y=height * (1 - count / most), width=step - 1, height=height * count / most, label="")
        for number, count in enumerate(counts)
    )


def rate_chart(work: Sequence[Work]) -> Chart | None:
    """Lay out the images labeled per second over the time of a run; None if none were labeled.

    A shard's images are spread evenly over the time of its attempt, since only its beginning and end are known.
    """
    if not work:
        return None
    start, end = min(shard.started_at for shard in work), max(shard.ended_at for shard in work)
    step_s = max(end - start, 1e-3) / _RATE_BINS
    rates = [0.0] * _RATE_BINS
    for shard in work:
        first, last = (shard.started_at - start) / step_s, max((shard.ended_at - start) / step_s, 1e-6)
        # An attempt of no measurable length still counts, in one bin.
        first = min(first, last - 1e-9)
        for number in range(int(first), min(_RATE_BINS - 1, int(last)) + 1):
            overlap = min(last, number + 1) - max(first, number)
            rates[number] += shard.images * max(0.0, overlap) / (last - first) / step_s
    images, span = sum(shard.images for shard in work), max(end - start, 1e-3)
    form = "%Y-%m-%d %H:%M:%S" if span < _SHORT_RUN_S else "%Y-%m-%d %H:%M"
    moments = [f"{datetime.fromtimestamp(start + number * step_s, UTC):{form}}" for number in range(_RATE_BINS + 1)]
    labels = [f"{moment}: {rate:.3g} images/s" for moment, rate in zip(moments, rates, strict=False)]
    speed = f"{images / span:.3g} images/s on average, {max(rates):.3g} at most"
    step = (WIDTH - _LEFT - _RIGHT) / _RATE_BINS
    return Chart(
        summary=f"Images labeled in a second from {moments[0]} to {moments[-1]} UTC: {speed}.",
        bars=_bars(rates, step, labels, gap=0),
        x_ticks=(Tick(at=_LEFT, text=moments[0]), Tick(at=WIDTH - _RIGHT, text=moments[-1])),
        y_ticks=_y_ticks(max(rates), whole=False),
        x_name=f"{speed}; UTC",
    )


def _bars(values: Sequence[float], step: float, labels: Sequence[str], gap: float = _GAP) -> tuple[Bar, ...]:
    top, height = _nice(max(values, default=0)), HEIGHT - _TOP - _BOTTOM
    return tuple(
        Bar(
            x=round(_LEFT + number * step, 2),
            y=round(HEIGHT - _BOTTOM - height * value / top, 2),
            width=round(step - gap, 2),
            height=round(height * value / top, 2),
            label=label,
        )
        for number, (value, label) in enumerate(zip(values, labels, strict=True))
    )


def _y_ticks(most: float, *, whole: bool) -> tuple[Tick, ...]:
    top, height = _nice(most), HEIGHT - _TOP - _BOTTOM
    shares = (0.0, 1.0) if whole and top < 2 else (0.0, 0.5, 1.0)
    return tuple(Tick(at=HEIGHT - _BOTTOM - height * share, text=_short(top * share)) for share in shares)


def _nice(most: float) -> float:
    """Return the end of an axis: the least of 1, 2, 4, 6, 8, 10 times a power of ten that is at least ``most``.

    A hundredth less is accepted, so that rounding does not double an axis.
    """
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next((step * power for step in (1, 2, 4, 6, 8, 10) if step * power >= most * 0.99), 10 * power)


def _short(value: float) -> str:
    """Format a number in few characters: 950, 12k, 1.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
