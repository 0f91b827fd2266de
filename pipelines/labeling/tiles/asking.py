"""Asks the model about large pictures view by view, and answers for the picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pipelines.images.decode_error import DecodeError
from pipelines.labeling.isolation import Asked, ModelClock, ask, failure_of
from pipelines.labeling.tiles.config import TileConfig
from pipelines.labeling.tiles.joining import Piece, choose_one, join_instances, join_map
from pipelines.labeling.tiles.views import View, is_tiled, views_of
from pipelines.table.schema import ranked
from pipelines.types import MAP_TASKS, Answer, Image, MaskPrediction, Predictor, Prompt, RejectedPrompt, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How large pictures are asked, and what is kept of the answers.

    Attributes:
        tiles: size and overlap.
        max_masks: of each picture and task; those with the best scores are kept.
    """

    tiles: TileConfig
    max_masks: int

    @property
    def bytes_of_tile(self) -> int:
        """Bytes of the pixels of a tile."""
        return 3 * self.tiles.size**2

    def ask(
        self,
        images: Sequence[Image],
        prompts: Sequence[Sequence[Prompt]],
        predictor: Predictor,
        clock: ModelClock,
        batch_size: int,
    ) -> list[Asked]:
        """Ask the model about images: those no larger than a tile together, each larger one in its views.

        Args:
            images: decoded images.
            prompts: what is asked of each.
            predictor: the loaded model.
            clock: adds up the time in it.
            batch_size: views that go through it together.

        Returns:
            One Asked for each image, in order. A picture of which one view fails has failed.
        """
        large = {number for number, image in enumerate(images) if is_tiled(image.size_hw, self.tiles)}
        small = [number for number in range(len(images)) if number not in large]
        found = dict(
            zip(
                small,
                ask([images[number] for number in small], [prompts[number] for number in small], predictor, clock),
                strict=True,
            )
        )
        for number in large:
            try:
                found[number] = self._ask_views(images[number], prompts[number], predictor, clock, batch_size)
            except Exception as error:  # noqa: BLE001 - one image's failure must not become its shard's
                reason, message = failure_of(error)
                found[number] = Asked(reason=reason, error=message)
        return [found[number] for number in range(len(images))]

    def _ask_views(
        self, image: Image, prompts: Sequence[Prompt], predictor: Predictor, clock: ModelClock, batch_size: int
    ) -> Asked:
        views = views_of(image.size_hw, prompts, self.tiles)
        answers: list[Asked] = []
        for start in range(0, len(views), batch_size):
            some = views[start : start + batch_size]
            try:
                shown = [replace(image, pixels=view.pixels(image.pixels)) for view in some]
            except DecodeError as error:  # of a file whose windows are decoded one by one
                return Asked(reason=error.reason, stage="decode", error=str(error))
            answers += ask(shown, [view.prompts for view in some], predictor, clock)
            if failed := next((one for one in zip(some, answers[start:], strict=True) if one[1].reason), None):
                view, answer = failed
                return replace(answer, error=f"in {view}: {answer.error}")
        return Asked(
            answer=self._answer(prompts, [(view, one.answer) for view, one in zip(views, answers, strict=True)]),
            attempts=max((one.attempts for one in answers), default=0),
            model_ms=sum(one.model_ms for one in answers),
        )

    def _answer(self, prompts: Sequence[Prompt], answers: Sequence[tuple[View, Answer]]) -> Answer:
        asked = {prompt.prompt_id: prompt for prompt in prompts}
        pieces: dict[str, list[Piece]] = {}
        for view, answer in answers:
            for mask in answer.masks:
                pieces.setdefault(mask.prompt.prompt_id, []).append(Piece.of(view, _of_picture(mask, asked)))
        found: dict[Task, list[MaskPrediction]] = {}
        for prompt_id, of_prompt in pieces.items():
            found.setdefault(asked[prompt_id].task, []).extend(self._joined(asked[prompt_id], of_prompt))
        kept = [mask for masks in found.values() for mask in ranked(masks)[: self.max_masks]]
        captions = tuple(caption for _, answer in answers for caption in answer.captions)
        return Answer(masks=tuple(kept), captions=captions, rejected=tuple(_rejected(answers)))

    def _joined(self, prompt: Prompt, pieces: Sequence[Piece]) -> list[MaskPrediction]:
        if prompt.task in MAP_TASKS:
            return join_map(pieces, is_countable=prompt.is_thing is True)
        if prompt.task == "intseg":
            return choose_one(pieces)
        return join_instances(pieces, self.tiles.overlap)


def _of_picture(mask: MaskPrediction, asked: Mapping[str, Prompt]) -> MaskPrediction:
    """Return a mask with its prompt as the picture has it: a region's was moved."""
    region = asked[mask.prompt.prompt_id].region
    return mask if region is None else replace(mask, prompt=replace(mask.prompt, region=region))


def _rejected(answers: Sequence[tuple[View, Answer]]) -> Iterator[RejectedPrompt]:
    """Yield, once each, the prompts that no view could be asked."""
    refused: dict[str, list[RejectedPrompt]] = {}
    times: dict[str, int] = {}
    for view, answer in answers:
        for prompt in view.prompts:
            times[prompt.prompt_id] = times.get(prompt.prompt_id, 0) + 1
        for rejected in answer.rejected:
            refused.setdefault(rejected.prompt_id, []).append(rejected)
    for prompt_id, reasons in refused.items():
        if len(reasons) == times.get(prompt_id, 0):
            yield reasons[0]
