"""The prompts of single images: from the rows of a prompt table, or for a retry those of the earlier run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flows.config import RunConfig
from pipelines.errors import PromptTableError, SourceError, some_texts
from pipelines.planning.category_ids import CategoryIds, has_name
from pipelines.planning.erasures import Forgotten
from pipelines.planning.prompt_table import NOT_LISTED, JoinedImages, PromptTable, read_prompt_table, row_name
from pipelines.redaction import quoted
from pipelines.storage.store import Store
from pipelines.table.quarantined import quarantined_images
from pipelines.types import ImageRef, Prompt, RejectedPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPrompts:
    """The prompts of single images.

    Attributes:
        table: the prompt table, without rejected rows; None if there is none.
        retried: the images to label again, with the prompts they had; each iteration reads them again. None if the run
            is not a retry.
        rejected: prompts that were rejected before any image was read.
    """

    table: PromptTable | None = None
    retried: Iterable[ImageRef] | None = None
    rejected: tuple[RejectedPrompt, ...] = ()

    def __iter__(self) -> Iterator[tuple[str, Prompt]]:
        """Yield all prompts, each with the image that its row names."""
        by_image = self.table.by_image.items() if self.table else ()
        retried = ((ref.image_id, ref.prompts) for ref in self.retried or ())
        return ((image, prompt) for image, prompts in itertools.chain(by_image, retried) for prompt in prompts)

    def of_others(self, forgotten: Forgotten) -> OwnPrompts:
        """Return a copy without the rows of a prompt table that are about forgotten images."""
        if self.table is None or not forgotten:
            return self
        by_image = {image: own for image, own in self.table.by_image.items() if not forgotten.names(image)}
        rejected = tuple(row for row in self.rejected if not forgotten.names(row.image))
        return replace(self, table=replace(self.table, by_image=by_image, rejected=rejected), rejected=rejected)

    def numbered(self, ids: CategoryIds) -> OwnPrompts:
        """Return a copy whose labels have the output's numbers; of a retry's prompts they are those planned before."""
        if self.table is None:
            return self
        by_image = self.table.by_image
        ids.add(sorted({p.category_name for prompts in by_image.values() for p in prompts if has_name(p)}))
        numbered = {image: ids.numbered(prompts) for image, prompts in by_image.items()}
        return replace(self, table=replace(self.table, by_image=numbered))

    def without(self, reasons: Mapping[int, str]) -> OwnPrompts:
        """Return a copy without the prompts of some rows, which are added to ``rejected`` with their reasons."""
        if not reasons:
            return self

        def kept(prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
            return tuple(prompt for prompt in prompts if prompt.source_row not in reasons)

        late = [
            RejectedPrompt.of(prompt, image, reasons[row])
            for image, prompt in self
            if (row := prompt.source_row) in reasons
        ]
        table, retried = self.table, self.retried
        return OwnPrompts(
            table=table and replace(table, by_image={image: kept(own) for image, own in table.by_image.items()}),
            retried=retried if retried is None else _Without(retried, frozenset(reasons)),
            rejected=(*self.rejected, *late),
        )


@dataclass(frozen=True, slots=True)
class _Without:
    """Images without the prompts of some rows; as iterable again and again as the images themselves."""

    images: Iterable[ImageRef]
    rows: frozenset[int]

    def __iter__(self) -> Iterator[ImageRef]:
        for ref in self.images:
            yield replace(ref, prompts=tuple(p for p in ref.prompts if p.source_row not in self.rows))


def unasked_rows(config: RunConfig, own: OwnPrompts, joined: JoinedImages) -> list[str]:
    """Return what to tell of a prompt table some of whose rows are asked of no image; the listing has been read.

    Raises:
        PromptTableError: they are more than limits.max_rejected_prompts_share of its rows.
    """
    if own.table is None:
        return []
    lost = [row for row in joined.rejected if row.reason == NOT_LISTED]
    others = [*own.rejected, *(row for row in joined.rejected if row.reason != NOT_LISTED)]
    told = []
    if lost:
        names = dict.fromkeys(row.image for row in lost)
        images, ids = some_texts(map(quoted, names)), some_texts(map(quoted, joined.examples))
        near = next(((name, joined.near[key]) for name in names if (key := name.lower()) in joined.near), None)
        meant = f"; did you mean {quoted(near[1])} by {quoted(near[0])}?" if near else ""
        told.append(
            f"{len(lost):,} of its {own.table.num_rows:,} rows name images that are not listed: the table has "
            f"{images}; an image_id here looks like {ids}{meant}"
        )
    if others:
        first = f"{row_name(config.prompts, others[0].row)}: {others[0].reason}"
        told.append(f"{len(others):,} of its {own.table.num_rows:,} rows cannot be asked, e.g. {first}")
    limit = config.limits.max_rejected_prompts_share
    if len(lost) + len(others) > limit * own.table.num_rows:
        raise PromptTableError(
            f"{config.prompts}: too many of its rows are asked of no image: {'; '.join(told)}. Nothing was "
            f"written; write the ids as the source has them, or allow for more (limits.max_rejected_prompts_share is "
            f"{limit:g})"
        )
    return [f"{config.prompts}: {one}" for one in told]


def read_own_prompts(config: RunConfig, store: Store) -> OwnPrompts:
    """Read the prompts of single images; for a retry the quarantined images of the earlier run with their prompts.

    Raises:
        SourceError, PromptTableError: the table cannot be used, or there is nothing to label again.
    """
    if config.retry is not None:
        images = quarantined_images(store, config.retry.run_id, config.retry.reasons)
        if not images:
            raise SourceError(f"run {config.retry.run_id} has no quarantined images to label again")
        return OwnPrompts(retried=images)
    if not config.prompts:
        return OwnPrompts()
    taken = {prompt.prompt_id for prompt in config.common_prompts()}
    table = read_prompt_table(config.prompts, config.source.client_options, taken=taken)
    return OwnPrompts(table=table, rejected=table.rejected)
