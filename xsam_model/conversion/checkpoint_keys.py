"""Maps tensor names between reference checkpoints and `XSamForSegmentation`, and explains why one does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.conversion.checkpoints import Checkpoint, CheckpointError, TensorInfo
from xsam_model.modeling_xsam import XSamForSegmentation

Value = TypeVar("Value")
Shape = tuple[int, ...]

# Prefix in the reference checkpoint -> prefix here. Every other key has the same name in both.
KEY_MAP = {"visual_encoder.vision_model.": "visual_encoder."}
MAX_LISTED = 20

# Buffers that old versions of transformers saved and that models compute by themselves.
_DERIVED = (".position_ids", ".rotary_emb.inv_freq")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WRAPPERS = ("module.", "model.", "_orig_mod.", "base_model.")
_MAIN_BRANCH = ("vision_encoder.", "segmentor.class_predictor.logit_scale")
_STAGES = {
    "a stage-1 checkpoint, the segmentor alone": {"segmentor", "seg_connector"},
    "a stage-2 checkpoint, the projectors alone": {"visual_projector", "seg_projector"},
}
# Prefix of a key -> the argument that determines its sizes.
_SOURCES = {"visual_encoder": "--vision-model", "segmentor.encoder": "--mask-encoder", "llm": "--text-model"}
_CONFIGURED = ("segmentor.", "seg_connector.")


def to_hf(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a state dict of the reference implementation for `XSamForSegmentation.load_state_dict`."""
    return {_rename(key, KEY_MAP): value for key, value in state_dict.items()}


def from_hf(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Rename a state dict of `XSamForSegmentation` back to the reference implementation's keys."""
    back = {ours: theirs for theirs, ours in KEY_MAP.items()}
    return {_rename(key, back): value for key, value in state_dict.items()}


def _rename(key: str, prefixes: Mapping[str, str]) -> str:
    old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
    return prefixes.get(old, "") + key.removeprefix(old)


@dataclass(frozen=True, kw_only=True)
class ExpectedTensors:
    """The tensors that a model of some configuration needs.

    Attributes:
        shapes: shapes of all tensors, by our names, in the model's order.
        optional: tensors that are tied to another one.
        vocabulary: tensors with one row per token; a checkpoint may have more rows.
        full_precision: tensors that stay float32 whatever the model is cast to.
    """

    shapes: dict[str, Shape]
    optional: frozenset[str]
    vocabulary: frozenset[str]
    full_precision: frozenset[str]

    @classmethod
    def of(cls, config: XSamConfig) -> ExpectedTensors:
        """Read them off a model that is built on the meta device, without memory for weights.

        Raises:
            CheckpointError: if no model can be built from the configuration.
        """
        try:
            with torch.device("meta"):
                model = XSamForSegmentation(config)
        except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError) as error:
            raise CheckpointError(f"no model can be built from the configuration: {error}") from error
        head = model.llm.get_output_embeddings()
        rows = [model.llm.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)]
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        named = dict(model.named_parameters(remove_duplicate=False))
        strict = model._keep_in_fp32_modules_strict or ()
        return cls(
            shapes=shapes,
            optional=frozenset(model.all_tied_weights_keys),
            vocabulary=frozenset(name for name, value in named.items() if any(value is row for row in rows)),
            full_precision=frozenset(name for name in shapes if any(part in name.split(".") for part in strict)),
        )


@dataclass(kw_only=True)
class KeyReport:
    """Differences between the tensors of a checkpoint and those needed, by the checkpoint's names.

    Attributes:
        missing, unexpected: names.
        misshaped: name -> what is there and what is needed.
        derived: unexpected buffers that models compute by themselves.
        shrunk: tensors with more rows than the vocabulary, which are cut.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: dict[str, str] = field(default_factory=dict)
    derived: list[str] = field(default_factory=list)
    shrunk: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Describe what does not fit, with at most `MAX_LISTED` names of each kind; empty if everything does."""
        misshaped = [f"{name}: {what}" for name, what in self.misshaped.items()]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": misshaped}
        return [line for kind, names in kinds.items() for line in _listed(kind, names)]


def _listed(kind: str, names: Sequence[str]) -> Iterable[str]:
    if names:
        yield f"{len(names)} {kind}:"
        yield from (f"  {name}" for name in names[:MAX_LISTED])
    if len(names) > MAX_LISTED:
        yield f"  ... and {len(names) - MAX_LISTED} more"


def compare(checkpoint: Checkpoint, expected: ExpectedTensors, *, reference_names: bool) -> KeyReport:
    """Compare every key and shape.

    Args:
        checkpoint: the checkpoint; may have more rows than the vocabulary.
        expected: what the model needs.
        reference_names: whether the checkpoint uses the names of the reference implementation, not ours.
    """
    rename = from_hf if reference_names else dict
    needed: dict[str, Shape] = rename(expected.shapes)
    optional = rename(dict.fromkeys(expected.optional))
    vocabulary = rename(dict.fromkeys(expected.vocabulary))
    found = checkpoint.tensors
    report = KeyReport(missing=[name for name in needed if name not in found and name not in optional])
    for name in [*found, *checkpoint.others]:
        if name not in needed:
            kept = report.derived if name.endswith(_DERIVED) else report.unexpected
            kept.append(name if name in found else f"{name} ({checkpoint.others[name]})")
        elif name not in found:
            report.misshaped[name] = f"{checkpoint.others[name]} instead of a tensor"
        elif found[name].dtype not in _FLOATS:
            report.misshaped[name] = f"holds {found[name].dtype}, needs floating point"
        elif found[name].shape != needed[name]:
            if name in vocabulary and _has_more_rows(found[name], needed[name]):
                report.shrunk.append(name)
            else:
                report.misshaped[name] = f"is {_size(found[name].shape)}, needs {_size(needed[name])}"
    return report


def _has_more_rows(info: TensorInfo, shape: Shape) -> bool:
    return info.shape[1:] == shape[1:] and len(info.shape) == len(shape) and info.shape[0] > shape[0]


def _size(shape: Shape) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def check_report(
    report: KeyReport, checkpoint: Checkpoint, expected: ExpectedTensors, *, ignore_unexpected: bool = False
) -> None:
    """Refuse a checkpoint that does not fit.

    Args:
        report: result of `compare`.
        checkpoint, expected: what was compared.
        ignore_unexpected: accept keys that the model does not use.

    Raises:
        CheckpointError: lists the names, and the likely cause if there is one.
    """
    if not (report.missing or report.misshaped or (report.unexpected and not ignore_unexpected)):
        return
    hint = _hint(report, checkpoint, expected)
    lines = [f"{checkpoint.path} does not fit the model", *report.lines()]
    raise CheckpointError("\n".join([*lines, f"hint: {hint}"] if hint else lines))


def _hint(report: KeyReport, checkpoint: Checkpoint, expected: ExpectedTensors) -> str:
    """Return the likely cause, judged by the most specific sign; empty if there is none."""
    found = checkpoint.tensors.keys()
    theirs = from_hf(expected.shapes)
    known = found & (theirs.keys() | expected.shapes.keys())
    parts = {name.split(".")[0] for name in known}
    wrapper = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in found)), "")
    stage = next((name for name, held in _STAGES.items() if parts and parts <= held), "")
    wrapped = wrapper and any(name.removeprefix(wrapper) in theirs for name in found)
    signs = {
        f"every name begins with {wrapper!r}: save the state dict without it": wrapped,
        "these are adapter weights: merge them into their language model first": any("lora_" in name for name in found),
        "these are the names of the reference's `main` branch, whose models compute differently": any(
            name.startswith(_MAIN_BRANCH) for name in found
        ),
        f"this looks like {stage}; the whole model is in s3_mixed_finetune": stage,
        "this is already converted; --reverse goes the other way": found >= expected.shapes.keys() - expected.optional,
        f"this looks like another model: of its {len(found)} names X-SAM has {len(known)}": len(known)
        < len(found) / 20,
        "the embeddings have fewer rows than the tokenizer of --text-model has tokens": _too_few_rows(
            report, checkpoint, expected
        ),
    }
    return next((hint for hint, seen in signs.items() if seen), _source_hint(report))


def _too_few_rows(report: KeyReport, checkpoint: Checkpoint, expected: ExpectedTensors) -> bool:
    """Return whether only the number of tokens is wrong."""
    rows = from_hf({name: expected.shapes[name] for name in expected.vocabulary})
    found = {name: checkpoint.tensors.get(name) for name in report.misshaped}
    others = report.missing or report.unexpected
    return not others and all(
        name in rows and info and info.shape[1:] == rows[name][1:] for name, info in found.items()
    )


def _source_hint(report: KeyReport) -> str:
    names = list(report.misshaped) or [*report.missing, *report.unexpected]
    # Projectors and connector are sized by the towers: if a tower does not fit, it alone is to blame.
    owners = {source for name in names for part, source in _SOURCES.items() if name.startswith(f"{part}.")}
    if not owners and any(name.startswith(_CONFIGURED) for name in names):
        owners = {"--config"}
    return f"the sizes in {' and '.join(sorted(owners))} are not those of the checkpoint" if owners else ""
