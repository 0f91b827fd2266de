"""The stages of training (X-SAM, sec. 3.4): which parameters each trains, and its settings, published ones included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from xsam_model.losses.point_sampling import PointSampling
from xsam_model.losses.targets import LossWeights
from xsam_model.training.loop.network import CLOSED_KINDS, StageKind, XSamTraining
from xsam_model.training.loop.optimizers import Muon, is_matrix
from xsam_model.training.samples.variation import Variation

# Modules of XSamTraining that each stage trains; all others are frozen.
_TRAINED: dict[str, tuple[str, ...]] = {
    "encoder": ("model.segmentor.encoder", "token_predictor"),
    "segmentor": (
        "model.segmentor.encoder",
        "model.segmentor.pixel_decoder",
        "model.segmentor.decoder",
        "model.seg_connector",
        "class_predictor",
        "dense_predictor",
    ),
    "alignment": ("model.visual_projector", "model.seg_projector"),
    "mixed": ("model", "dense_predictor"),
    "refiner": ("model.refiner",),
}
# Matrices with one row for each class or token. Like an embedding's, the rows are independent of each other, so Muon
# must not mix them.
_HEADS = ("lm_head.weight", "class_predictor.weight", "dense_predictor.weight", "token_predictor.1.weight")
_TOWERS = ("model.segmentor.encoder", "model.visual_encoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """Settings of one stage.

    Attributes:
        kind: "encoder" trains only the mask encoder, to name what its tokens show, which only a model from random
            weights needs; "segmentor" trains mask encoder, connector and both decoders with a closed list of classes;
            "alignment" trains the two image projectors with the language model's loss; "mixed" trains everything on
            every task but the refiner; "refiner" trains that alone.
        steps: number of updates of the weights.
        sources: names of the data sets; all by default.
        batch_size: samples in one update, over all processes and `accumulation` passes.
        accumulation: forward passes whose gradients make one update.
        learning_rate: highest learning rate.
        learning_rate_factors: factors for parameters by the beginning of their name within `XSamForSegmentation`; the
            longest match counts. Parameters whose factor is 0 are frozen.
        warmup_share: share of the steps in which the learning rate rises, 0 to 1.
        schedule: "cosine" to 0, "step" by 0.1 at `milestones` (shares of the steps), or "constant".
        weight_decay: decay of weight matrices; norms, biases and embeddings have none.
        optimizer: "adamw", or "muon" for weight matrices with AdamW for the rest; they share learning rate and decay.
        betas: betas of AdamW.
        clip_norm: largest norm of the gradient; 0 for no limit.
        average_decay: decay of an exponential moving average of the weights, which is saved at the end; 0 for none.
        weights, points, variation: weights of the losses, sampling of mask points, variation of conversations.
    """

    kind: StageKind
    steps: int
    sources: tuple[str, ...] = ()
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 4e-5
    learning_rate_factors: Mapping[str, float] = field(default_factory=dict)
    warmup_share: float = 0.03
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (24 / 36, 30 / 36)
    weight_decay: float = 0.05
    optimizer: Literal["adamw", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    average_decay: float = 0.0
    weights: LossWeights = field(default_factory=LossWeights)
    points: PointSampling = field(default_factory=PointSampling)
    variation: Variation = field(default_factory=Variation)

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: says which setting is wrong and what is allowed.
        """
        if self.kind not in _TRAINED:
            raise ValueError(f"unknown kind of stage {self.kind!r}; known: {', '.join(_TRAINED)}")
        if self.schedule not in ("cosine", "step", "constant"):
            raise ValueError(f"unknown schedule {self.schedule!r}; known: cosine, step, constant")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; known: adamw, muon")
        for name in ("steps", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("warmup_share", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of an update, counted from 0, as a share of `learning_rate`."""
        warmup = math.ceil(self.steps * self.warmup_share)
        if step < warmup:
            # From the first share on and not from 0, at which the first update would change nothing.
            return (step + 1) / warmup
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))
        if self.schedule == "step":
            return float(0.1 ** sum(step >= share * self.steps for share in self.milestones))
        return 1.0


def published(kind: StageKind, steps: int) -> StageConfig:
    """Return the settings with which the released weights were trained; `steps` depends on the data.

    The encoder and refiner stages are not published ones; their settings are ours.

    The towers learn ten times slower than the rest, because they start from pretrained weights; for a model from random
    weights set `learning_rate_factors` to {}.
    """
    if kind == "encoder":
        return StageConfig(kind=kind, steps=steps, learning_rate=1e-3)
    towers = {name.removeprefix("model."): 0.1 for name in _TOWERS}
    if kind == "segmentor":
        return StageConfig(
            kind=kind, steps=steps, learning_rate=1e-4, learning_rate_factors=towers, schedule="step", clip_norm=0.01
        )
    if kind == "refiner":
        # The mean over places and that of masks are both about 1 here, where the published weights are for points.
        weights = LossWeights(mask=2.0, dice=1.0)
        return StageConfig(
            kind=kind,
            steps=steps,
            batch_size=16,
            learning_rate=2e-3,
            weight_decay=0.01,
            betas=(0.9, 0.98),
            weights=weights,
        )
    if kind == "alignment":
        return StageConfig(kind=kind, steps=steps, batch_size=256, accumulation=4, learning_rate=1e-3, weight_decay=0.0)
    return StageConfig(kind=kind, steps=steps, learning_rate_factors=towers)


def read_stage(values: Mapping[str, Any]) -> StageConfig:
    """Return the published settings of `values["kind"]`, updated with the other values.

    Raises:
        ValueError: if a value is missing, unknown or out of range.
    """
    parts = {"weights": LossWeights, "points": PointSampling, "variation": Variation}
    fields: dict[str, Any] = {}
    try:
        base = published(values["kind"], values["steps"])
        for name, value in values.items():
            if name in parts:
                fields[name] = replace(getattr(base, name), **value)
            else:
                fields[name] = tuple(value) if isinstance(value, list) else value
        return replace(base, **fields)
    except KeyError as error:
        raise ValueError(f"a stage needs {error}") from None
    except TypeError as error:
        raise ValueError(f"a stage cannot be read: {error}") from error


def select_parameters(network: XSamTraining, factors: Mapping[str, float]) -> None:
    """Make exactly those parameters trainable that the stage trains, at a rate above 0, and its forward pass uses."""
    unused = _unused_parameters(network)
    for name, parameter in network.named_parameters():
        trained = any(name == part or name.startswith(f"{part}.") for part in _TRAINED[network.kind])
        learns = trained and not name.startswith(unused) and _factor(name.removeprefix("model."), factors) > 0
        parameter.requires_grad_(learns)


def parameter_groups(network: XSamTraining, stage: StageConfig) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups, by learning-rate factor, weight decay and use of Muon.

    Each has a `factor` for the learning rate of every step, and `matrices`, True for weights that Muon trains.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for module_name, module in network.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                name = f"{module_name}.{leaf}".removeprefix("model.")
                factor, decayed = _factor(name, stage.learning_rate_factors), _is_decayed(module, leaf, parameter)
                matrices = stage.optimizer == "muon" and not name.endswith(_HEADS) and is_matrix(module, parameter)
                groups.setdefault((factor, decayed, matrices), []).append(parameter)
    return [
        {"params": parameters, "factor": factor, "weight_decay": stage.weight_decay * decayed, "matrices": matrices}
        for (factor, decayed, matrices), parameters in groups.items()
    ]


def build_optimizer(network: XSamTraining, stage: StageConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a stage for the parameters that it trains."""
    groups = parameter_groups(network, stage)
    if stage.optimizer == "muon":
        return Muon(groups, stage.learning_rate, betas=stage.betas)
    # Fused always: it rounds differently from the plain update, and a resumed run must repeat the same bits.
    return torch.optim.AdamW(groups, stage.learning_rate, betas=stage.betas, fused=True)


def _unused_parameters(network: XSamTraining) -> tuple[str, ...]:
    """Return prefixes of parameters that no forward pass reads, most of which exist because the released weights do.

    Data-parallel training needs a gradient of every parameter that is trained.
    """
    config = network.model.config
    layers, selected = config.vision_config.num_hidden_layers, config.vision_select_layer
    last = selected if selected >= 0 else layers + 1 + selected
    encoder = "model.visual_encoder"
    # A name head is fitted by itself, to the model that training ends with.
    unused = ["model.segmentor.encoder.neck", "model.segmentor.shared_image_embedding", "model.name_head"]
    unused += [f"{encoder}.{name}" for name in ("head", "post_layernorm")]
    if network.kind == "mixed":
        # Trained by a stage of its own, on windows.
        unused.append("model.refiner")
    if network.kind in CLOSED_KINDS:
        # Only language tokens have places that a trunk has to learn.
        unused.append("model.segmentor.encoder.token_positions")
    return (*unused, *(f"{encoder}.encoder.layers.{index}." for index in range(last, layers)))


def _factor(name: str, factors: Mapping[str, float]) -> float:
    named = [prefix for prefix in factors if name == prefix or name.startswith(f"{prefix}.")]
    return factors[max(named, key=len)] if named else 1.0


def _is_decayed(module: nn.Module, leaf: str, parameter: nn.Parameter) -> bool:
    # Position embeddings are parameters of other modules, so they are known by their names.
    places = ("embed", "rel_pos", "positional")
    return parameter.ndim > 1 and not isinstance(module, nn.Embedding) and not any(part in leaf for part in places)
