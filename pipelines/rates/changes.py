"""Hold the rates of a run against limits, and against those of another run, with few false alarms.

Each comparison is a two-sided test of Student's t on the spread of blocks of images, and all of them together raise an
alarm in one of a hundred runs in which nothing has changed (Bonferroni): one half of that is for all prompts together,
the other half for single ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Self

from pydantic import model_validator

from pipelines.errors import some_of
from pipelines.rates.rates import METRICS, Rate, Rates
from pipelines.settings import Settings

_FALSE_ALARMS = 0.01
_LEAST_IMAGES = 20
_MOST_TOLD = 5


class RateLimits(Settings):
    """What a run has to keep to."""

    max_empty_share: float | None = None
    """Share of the images, in [0, 1], in which a prompt may find nothing; for each prompt."""
    min_masks_per_image: float | None = None
    """Masks per image that each prompt has to find on the average."""
    max_masks_per_image: float | None = None
    """Masks per image that each prompt may find on the average."""
    min_score: float | None = None
    """Mean of the best scores that each prompt has to reach, in [0, 1], over the images in which it finds something."""
    min_change: float = 0.1
    """Differences from the last run that are smaller are no news, however sure: of a share or a score; of masks per
    image as a share of the larger number.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("max_empty_share", "min_score", "min_change"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"canary: {name} is {value}; allowed: 0 to 1")
        for name in ("min_masks_per_image", "max_masks_per_image"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"canary: {name} is {value}; allowed: 0 or more")
        return self


def beyond_limits(rates: Rates, limits: RateLimits, max_quarantined_share: float) -> list[str]:
    """Return in words which rates are surely beyond their limits, the worst first.

    Args:
        rates: of the run.
        limits: those of each prompt.
        max_quarantined_share: share of the images, in [0, 1], that may be quarantined.
    """
    highest = {"empty": limits.max_empty_share, "masks": limits.max_masks_per_image}
    lowest = {"masks": limits.min_masks_per_image, "score": limits.min_score}
    checks: list[tuple[str, str, Rate | None, float | None, int]]
    checks = [("", "quarantined", rates.whole.get("quarantined"), max_quarantined_share, 1)]
    for prompt, held in rates.prompts.items():
        checks += [(prompt, name, held.get(name), limit, 1) for name, limit in highest.items()]
        checks += [(prompt, name, held.get(name), limit, -1) for name, limit in lowest.items()]
    wanted = [
        (prompt, name, rate, limit, side) for prompt, name, rate, limit, side in checks if rate and limit is not None
    ]
    found = []
    for prompt, name, rate, limit, side in wanted:
        # One side alone can be exceeded. A limit that leaves no room, such as at most 0, is exceeded by any.
        sure = _critical(_FALSE_ALARMS * 2 / len(wanted), rate.blocks - 1) * rate.error
        excess = side * (rate.mean - limit)
        if excess > 0 and (excess > sure or limit == 0):
            word = "at most" if side > 0 else "at least"
            found.append(
                (
                    excess / rate.error,
                    f"{_named(prompt, name)}: {_told(name, rate)}, {word} {_value(name, limit)} allowed",
                )
            )
    return _worst(found)


def changed(now: Rates, then: Rates, run_id: str, min_change: float) -> list[str]:
    """Return in words which rates surely differ from those of another run, the most surely first.

    Args:
        now: of the run.
        then: of the other.
        run_id: the other.
        min_change: see RateLimits.
    """
    whole = list(_pairs("", now.whole, then.whole))
    # Of a single prompt the rates are those of all together.
    is_one = len(now.prompts) == 1 and now.prompts.keys() == then.prompts.keys()
    shared = [] if is_one else [name for name in now.prompts if name in then.prompts]
    single = [pair for name in shared for pair in _pairs(name, now.prompts[name], then.prompts[name])]
    found = []
    for pairs in (whole, single):
        for prompt, name, rate, before in pairs:
            freedom = min(rate.blocks, before.blocks) - 1
            critical = _critical(_FALSE_ALARMS / 2 / len(pairs), freedom)
            difference, error = abs(rate.mean - before.mean), math.hypot(*_errors(prompt, name, now, then))
            scale = max(rate.mean, before.mean) if name == "masks" else 1.0
            if difference > critical * error and difference >= min_change * scale:
                told = f"{_named(prompt, name)}: {_told(name, rate)}, {_value(name, before.mean)} in run {run_id}"
                found.append((difference / error, told))
    alarms = _worst(found)
    new, gone = [name for name in now.prompts if name not in then.prompts], then.prompts.keys() - now.prompts.keys()
    if alarms and (new or gone):
        asked = [f"asked now: {some_of(new)}"] if new else []
        asked += [f"asked then: {some_of(sorted(gone))}"] if gone else []
        alarms.append(f"the prompts differ; {'; '.join(asked)}")
    return alarms


def _pairs(prompt: str, now: Mapping[str, Rate], then: Mapping[str, Rate]) -> Iterator[tuple[str, str, Rate, Rate]]:
    for name in METRICS:
        if name in now and name in then and min(now[name].images, then[name].images) >= _LEAST_IMAGES:
            yield prompt, name, now[name], then[name]


def _errors(prompt: str, metric: str, *both: Rates) -> Iterator[float]:
    """Yield the standard error of each of two rates if nothing has changed.

    What is rare may not be seen at all among a few images, which then seem to be sure of it: of two rates, the variance
    of an image is at least what the other one says.
    """
    for rates, other in (both, both[::-1]):
        held, known = (one.prompts[prompt] if prompt else one.whole for one in (rates, other))
        rate, mean = held[metric], known[metric].mean
        variance = 0.0
        if metric in ("quarantined", "empty"):
            variance = mean * (1 - mean)
        elif metric == "masks" and mean:
            # Masks come by several: with f for each image that has any, about f + 1 times the variance of one by one.
            variance = mean * (1 + mean / max(1e-9, 1 - known["empty"].mean))
        yield max(rate.error, math.sqrt(variance / rate.images))


def _worst(found: list[tuple[float, str]]) -> list[str]:
    texts = [text for _, text in sorted(found, reverse=True)]
    more = [f"and {len(texts) - _MOST_TOLD:,} more"] if len(texts) > _MOST_TOLD else []
    return [*texts[:_MOST_TOLD], *more]


def _named(prompt: str, metric: str) -> str:
    return f"{prompt}: {METRICS[metric]}" if prompt else METRICS[metric]


def _told(metric: str, rate: Rate) -> str:
    return f"{_value(metric, rate.mean)} in {rate.images:,} images"


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric in ("quarantined", "empty") else f"{value:.2f}"


def _critical(chance: float, freedom: int) -> float:
    """Return the value that Student's t exceeds in size with a chance, by the expansion of Cornish and Fisher."""
    z, v = NormalDist().inv_cdf(1 - chance / 2), max(freedom, 5)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(z + sum(term / v**power for power, term in enumerate(terms, start=1)))
