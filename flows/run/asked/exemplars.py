"""Freeze a run's exemplars: those that the plan has, or else what the config and the prompt table give, fetched now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flows.config import ConfigError, RunConfig
from pipelines.errors import PlanError, SourceError
from pipelines.planning.erasures import read_forgotten
from pipelines.planning.exemplars.config import ExemplarConfig, FrozenExemplar, selections
from pipelines.planning.exemplars.find import Fetching, find_exemplars
from pipelines.planning.exemplars.images import exemplar_images
from pipelines.planning.exemplars.table import table_exemplars
from pipelines.planning.plan import Plan, require_plan
from pipelines.redaction import shown
from pipelines.sources.listing import list_batches
from pipelines.storage.store import Store


def with_exemplars(
    config: RunConfig, store: Store, held: Callable[[], Plan | None]
) -> tuple[RunConfig, dict[str, bytes]]:
    """Return the config with its exemplars frozen, and the bytes of their images by SHA-256 if a plan is to keep them.

    A plan that is there keeps its exemplars, whatever has become of their images since, as long as they are given in
    the same words. A retry has those of the run that it belongs to.

    Args:
        config: the run.
        store: the output.
        held: returns the run's plan, if it has one; called only if there are exemplars.

    Raises:
        SourceError, PromptTableError: an exemplar cannot be used; the message names it.
        PlanError: a retry's exemplars were forgotten.
        ConfigError: a new run is given frozen ones.
    """
    if config.exemplars_frozen:  # the config of a plan, or of a retry, which has that of the run it belongs to
        if held() is not None:
            return config, {}
        if config.retry is None:
            raise ConfigError("exemplars_frozen is what a plan has made of exemplars; give exemplars to a new run")
        return config, _images_of(store, config.retry.run_id, config)
    given = [*config.exemplars, *(_of_table(config) if config.prompts else ())]
    if not given or config.retry is not None:
        return config, {}
    try:
        selections(given)
    except ValueError as error:
        raise SourceError(str(error)) from None
    plan = held()
    if plan is not None and (planned := _planned(plan)) and [one.given for one in planned] == given:
        return config.replace(exemplars_frozen=planned), {}
    forgotten = read_forgotten(store)
    fetching = Fetching(
        source_options=config.source.client_options,
        allow_http=config.source.allow_http,
        timeout_s=config.label.fetch_timeout_s,
        decode=config.label.decode,
    )
    frozen, images = find_exemplars(given, list_batches(config.source.uri, **config.source.listing_options), fetching)
    if gone := [one.image for one in frozen if forgotten.names(one.image) or forgotten.names(one.uri)]:
        raise SourceError(
            f"{shown(gone[0])} was forgotten on request, and shows nothing any more: give another exemplar"
        )
    return config.replace(exemplars_frozen=tuple(frozen)), images


def _of_table(config: RunConfig) -> Iterator[ExemplarConfig]:
    assert config.prompts is not None
    return table_exemplars(config.prompts, config.source.client_options)


def _planned(held: Plan) -> tuple[FrozenExemplar, ...]:
    return tuple(map(FrozenExemplar.model_validate, held.facts.get("config", {}).get("exemplars_frozen", ())))


def _images_of(store: Store, run_id: str, config: RunConfig) -> dict[str, bytes]:
    """Return the images of the exemplars that a run has asked."""
    plan = require_plan(store, run_id)
    images = exemplar_images(store, plan)
    if any(one.sha256 not in images for one in config.exemplars_frozen):
        raise PlanError(
            f"{store.uri}: an exemplar of run {plan.run_id} was forgotten on request, so what it showed cannot be "
            "asked again"
        )
    return images
