"""XSamTraining wraps the network for training: a forward pass to losses, with heads that only training has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xsam_model.losses.losses import (
    SegmentationLoss,
    cross_entropy_at_points,
    dice_at_points,
    language_loss,
)
from xsam_model.losses.point_sampling import PointSampling, RandomPoints
from xsam_model.losses.targets import LossWeights
from xsam_model.modeling_xsam import XSamForSegmentation, XSamOutput
from xsam_model.training.samples.batches import TrainingBatch

StageKind = Literal["encoder", "segmentor", "alignment", "mixed", "refiner"]
# Weight of what a refiner expects of its masks: less than the masks, whose features it shares.
_QUALITY = 0.3
CLOSED_KINDS: tuple[StageKind, ...] = ("encoder", "segmentor")


class XSamTraining(nn.Module):
    """X-SAM with the heads and losses of a stage; a call returns the losses of a batch.

    Args:
        model: the model that is trained and saved.
        kind: kind of stage, see `stages`.
        num_classes: number of closed classes; 0 for none.
        weights, sampling: weights of the losses, and sampling of their points.
        average: mean over all processes, see `SegmentationLoss`.
    """

    def __init__(
        self,
        model: XSamForSegmentation,
        kind: StageKind,
        num_classes: int = 0,
        *,
        weights: LossWeights | None = None,
        sampling: PointSampling | None = None,
        average: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.kind = model, kind
        self.weights = weights or LossWeights()
        options: dict[str, Any] = {} if average is None else {"average": average}
        self._average = options
        self._loss = SegmentationLoss(weights=self.weights, sampling=sampling or PointSampling(), **options)
        channels = model.config.segmentor_config.hidden_dim
        if kind in CLOSED_KINDS and num_classes < 1:
            raise ValueError(f"the {kind} stage needs the names of its classes")
        if kind == "refiner" and model.refiner is None:
            raise ValueError(
                "the refiner stage needs a model with one: begin with python -m xsam_model.training.add_refiner"
            )
        if kind == "segmentor":
            self.class_predictor = nn.Linear(channels, num_classes + 1)
        if kind == "encoder":
            last = model.config.mask_encoder_config.num_hidden_layers
            channels, _ = model.config.mask_encoder_map(last)
            self.token_predictor = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_classes + 1))
        elif self.weights.dense > 0 and kind != "refiner":
            if num_classes < 1:
                raise ValueError("the dense loss needs the names of its classes")
            self.dense_predictor = nn.Conv2d(channels, num_classes + 1, 1)

    def forward(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the weighted losses of a batch by name, float32 scalars; their sum is minimized."""
        if self.kind == "encoder":
            return {"tokens": self._tokens(batch)}
        if self.kind == "segmentor":
            return self._closed(batch)
        if self.kind == "refiner":
            return self._refined(batch)
        language_only = self.kind == "alignment" or batch.task == "chat"
        output = self.model(**batch.inputs, output_hidden_states=True, language_only=language_only)
        losses = {"language": self.weights.language * self._language(output, batch)}
        if language_only:
            return losses
        masks = torch.stack(output.decoder_mask_logits or ())
        losses |= self._loss(self._class_logits(output, batch), masks, batch.targets, self._points(batch))
        if self.weights.dense > 0:
            maps = output.image_features.multi_scale_features[-1][output.image_indices]
            losses["dense"] = self._dense(maps, batch)
        return losses

    def _tokens(self, batch: TrainingBatch) -> Tensor:
        """Return the loss of the encoder stage: cross-entropy of each token with the classes' shares of its area."""
        last = self.model.config.mask_encoder_config.num_hidden_layers
        canvases = batch.inputs["segmentor_pixel_values"]
        hidden = self.model.segmentor.encode(canvases.to(self.model.dtype), {last})[last]
        logits = self.token_predictor(hidden).float()
        shares = F.adaptive_avg_pool2d(batch.targets.masks.float(), (hidden.shape[1], hidden.shape[2]))
        truth = torch.zeros_like(logits)
        # Objects of the same class add up their shares.
        truth.movedim(3, 1).index_put_((batch.targets.decodes, batch.class_ids), shares, accumulate=True)
        # The background has the rest. Overlaps of surfaces and things by rounding at borders could make it negative.
        truth[..., -1] = (1 - truth.sum(-1)).clamp(min=0)
        weights = torch.ones_like(truth[0, 0, 0])
        weights[-1] = self.weights.background
        weighted = truth * weights
        average = self._average.get("average", lambda value: value)
        return -(weighted * logits.log_softmax(-1)).sum() / average(weighted.sum()).clamp(min=1e-6)

    def _closed(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the losses of the segmentor alone, with a closed list of classes (X-SAM, sec. 3.4, stage 1)."""
        _, maps, mask_features = self.model.encode_canvases(**batch.inputs)
        # Without a language model there is no `<SEG>` embedding to add to the queries.
        shift = mask_features.new_zeros(len(mask_features), self.model.config.segmentor_config.hidden_dim)
        decoded = self.model.segmentor.decoder.every_prediction(maps, mask_features, shift)
        queries = torch.stack(decoded.intermediate_hidden_states).transpose(1, 2)
        masks = torch.stack(decoded.masks_queries_logits)
        losses = self._loss(self.class_predictor(queries).float(), masks, batch.targets, self._points(batch))
        if self.weights.dense > 0:
            losses["dense"] = self._dense(maps[-1], batch)
        return losses

    def _refined(self, batch: TrainingBatch) -> dict[str, Tensor]:
        """Return the losses of the refiner: of its masks, at every place, and of what it expects of them."""
        logits, quality = self.model.refine(**batch.inputs)
        average = self._average.get("average", lambda value: value)
        number = average(torch.tensor(float(len(logits)), device=logits.device))
        size = (logits.shape[1], logits.shape[2])
        truth = F.adaptive_avg_pool2d(batch.targets.masks[:, None].float(), size)[:, 0].flatten(1)
        valid = torch.ones_like(truth)
        if batch.targets.valid is not None:
            valid = F.adaptive_avg_pool2d(batch.targets.valid[:, None].float(), size)[:, 0].flatten(1)
        flat = logits.flatten(1)
        with torch.no_grad():
            found, real = (flat > 0).float() * valid, (truth > 0.5).float() * valid
            common = (found * real).sum(1)
            # What lies outside of the window is missed.
            whole = real.sum(1) / cast("Tensor", batch.shares).clamp(min=1e-3)
            ious = common / (found.sum(1) + whole - common).clamp(min=1)
        return {
            "mask": self.weights.mask * cross_entropy_at_points(flat, truth, valid).sum() / number,
            "dice": self.weights.dice * dice_at_points(flat, truth, valid).sum() / number,
            "quality": _QUALITY * F.binary_cross_entropy_with_logits(quality, ious, reduction="sum") / number,
        }

    def _class_logits(self, output: XSamOutput, batch: TrainingBatch) -> Tensor:
        """Return class logits of the queries of every decoder level, (L, N, Q, K + 1)."""
        conditions, mask = output.condition_embeddings[output.conversation_indices], output.condition_mask
        # Referring tasks have one phrase a conversation: those of the whole batch are scored, the others as negatives.
        if batch.shared_columns is not None:
            phrases = output.condition_embeddings[:, 0]
            background = output.condition_embeddings[:1, -1]
            conditions = torch.cat([phrases, background])[None].expand(len(conditions), -1, -1)
            mask = F.pad(batch.shared_columns, (0, 1), value=True)
        return self.model.segmentor.classify_levels(output.decoder_hidden_states or (), conditions, mask)

    def _language(self, output: XSamOutput, batch: TrainingBatch) -> Tensor:
        inputs, config = batch.inputs, self.model.config
        labels = splice_labels(
            batch.token_labels, inputs["input_ids"], config.image_token_index, config.num_image_tokens
        )
        hidden = cast("Tensor", output.language_hidden_state)
        return language_loss(hidden, labels, self.model.llm.get_output_embeddings(), **self._average)

    def _dense(self, maps: Tensor, batch: TrainingBatch) -> Tensor:
        """Return the dense loss, which names the category at every place of the finest feature map, (N, C, H, W).

        Helps a model from random weights to learn names; the background counts less.
        """
        logits = self.dense_predictor(maps).float()
        background = logits.shape[1] - 1
        # Maximum, not mean: an object smaller than a cell of the map still names it.
        places = F.adaptive_max_pool2d(batch.targets.masks[:, None].float(), logits.shape[-2:])[:, 0]
        shown = places > 0
        values = torch.where(shown, batch.class_ids[:, None, None] + 1, 0)
        indices = batch.targets.decodes[:, None, None].expand_as(values)
        empty = values.new_zeros(len(logits), *logits.shape[-2:])
        painted = empty.scatter_reduce(0, indices, values, "amax")
        covered = empty.scatter_reduce(0, indices, shown.long(), "amax") > 0
        truth = torch.where(painted > 0, painted - 1, background)
        # A place covered only by a mask without a class is neither background nor a known class.
        weights = torch.where(painted > 0, 1.0, torch.where(covered, 0.0, self.weights.background))
        # An image without any known class may show all of them, so nothing in it counts as background.
        classes = torch.bincount(batch.targets.decodes[batch.class_ids >= 0], minlength=len(logits))
        weights = weights * (classes > 0)[:, None, None]
        # Every process must take part in this mean, even with all weights 0, or the others would wait for it for ever.
        entropy = F.cross_entropy(logits, truth, reduction="none") * weights
        average = self._average.get("average", lambda value: value)
        return self.weights.dense * entropy.sum() / average(weights.sum()).clamp(min=1e-6)

    def _points(self, batch: TrainingBatch) -> RandomPoints:
        return RandomPoints(keys=batch.keys, device=batch.targets.masks.device)


def splice_labels(labels: Tensor | None, input_ids: Tensor, image_token: int, num_image_tokens: int) -> Tensor:
    """Move the labels of text tokens to their positions after the image is spliced in.

    Args:
        labels: (B, L) ids, `IGNORED_TOKEN` at the image and before it.
        input_ids: (B, L), with one `image_token` in each row.
        image_token: pseudo id of the image.
        num_image_tokens: number of positions that the image takes.

    Returns:
        (B, L + num_image_tokens - 1).
    """
    if labels is None:
        raise ValueError("the batch has no answers to learn")
    places = (input_ids == image_token).int().argmax(1, keepdim=True)
    columns = torch.arange(labels.shape[1], device=labels.device)
    moved = columns + (columns > places) * (num_image_tokens - 1)
    spliced = labels.new_full((len(labels), labels.shape[1] + num_image_tokens - 1), -100)
    return spliced.scatter(1, moved.expand_as(labels), labels)
