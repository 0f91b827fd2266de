"""What comparing with the recordings of the reference implementation found: judged, listed, and kept as a document."""

import datetime
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

FEATURES, LOGITS, SCORES = 2e-5, 1e-4, 1e-4
MASK_PIXELS, MASK_IOU = 3, 0.99
MASKS, EXACT = f"{MASK_PIXELS} px or IoU {MASK_IOU}", "equal"

# What each recorded value is a part of; the first pattern that matches counts.
KINDS = {
    "image inputs": r"in\.(extra_)?pixel_values",
    "sizes, tokens and their groups": r"in\.|mm\.(cond|seg)_ids|segmentor\.in\.embed_masks",
    "image features": r"shared\.",
    "embeddings and queries": r"mm\.|llm|segmentor\.in|decoder\.layer_hidden",
    "class logits": r"class_logits",
    "mask logits": r"decoder\.mask_logits|mask_logits",
    "result: masks and maps": r"result\.(masks|map)",
    "result: scores": r"result\.score",
    "result: boxes": r"result\.boxes",
    "result: ids and labels": r"result\.",
}


@dataclass(frozen=True)
class Row:
    """One recorded value against ours."""

    model: str
    attention: str
    case: str
    value: str
    difference: float
    tolerance: float | str
    text: str
    holds: bool

    @property
    def kind(self):
        return next(kind for kind, pattern in KINDS.items() if re.match(pattern, self.value))


class Comparison:
    """Compares the values of one case; as a context it fails at its end, so that one row does not hide the others."""

    def __init__(self, rows, model, attention, case):
        self._rows, self._names, self._own = rows, (model, attention, case), []

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        failed = [f"{row.value}: {row.text}, tolerance {row.tolerance}" for row in self._own if not row.holds]
        assert error is not None or not failed, f"{' '.join(self._names)}: " + "; ".join(failed)

    def _add(self, *values):
        row = Row(*self._names, *values)
        self._own.append(row)
        self._rows.append(row)

    def near(self, value, actual, expected, tolerance):
        """Largest absolute difference of two arrays of the same shape."""
        actual, expected = (torch.as_tensor(array).double() for array in (actual, expected))
        if actual.shape != expected.shape:
            self._add(value, float("inf"), tolerance, f"{tuple(actual.shape)} for {tuple(expected.shape)}", False)
            return
        difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
        self._add(value, difference, tolerance, f"{difference:.1e}" if difference else "0", difference <= tolerance)

    def same(self, value, actual, expected):
        """Equality of anything."""
        equal = torch.equal(actual, expected) if isinstance(expected, torch.Tensor) else actual == expected
        self._add(value, float(not equal), EXACT, "equal" if equal else f"{actual} for {expected}", equal)

    def masks(self, value, pairs):
        """The worst of pairs of boolean masks, ours first."""
        worst, iou, holds = 0, 1.0, True
        for actual, expected in pairs:
            pixels, overlap = mask_difference(actual, expected)
            worst, iou = max(worst, pixels), min(iou, overlap)
            holds &= pixels <= MASK_PIXELS or overlap >= MASK_IOU
        self._add(value, float(worst), MASKS, f"{worst} px, IoU {iou:.4f}" if worst else "0 px", holds)


def mask_difference(actual, expected):
    """Return pixels that differ, and the intersection over union: 1 for two empty masks."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return actual.size + expected.size, 0.0
    union = int((actual | expected).sum())
    return int((actual != expected).sum()), int((actual & expected).sum()) / union if union else 1.0


class ParityTable:
    """All comparisons of a run."""

    def __init__(self):
        self.rows = []

    def case(self, model, attention, case):
        return Comparison(self.rows, model, attention, case)

    def listing(self):
        """Every row, as text."""
        lines = [
            f"{row.model:12} {row.attention:10} {row.case:24} {row.value:40} {row.text:>24}   {row.tolerance}"
            + ("" if row.holds else "   FAILED")
            for row in self.rows
        ]
        return "\n".join(
            [f"{'model':12} {'attention':10} {'case':24} {'value':40} {'difference':>24}   tolerance", *lines]
        )

    def document(self, command, folders):
        """One row for each case and kind of value, as Markdown."""
        versions = (
            f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
        )
        date = datetime.datetime.now(datetime.UTC).date()
        text = _DOCUMENT.format(
            command=command,
            date=date,
            versions=versions,
            machine=platform.machine(),
            count=len(self.rows),
            failed=sum(not row.holds for row in self.rows),
            noise=_own_noise(folders),
        )
        for model in dict.fromkeys(row.model for row in self.rows):
            text += f"\n## {model}\n\n" + self._summary([row for row in self.rows if row.model == model])
        return text

    @staticmethod
    def _summary(rows):
        modes = list(dict.fromkeys(row.attention for row in rows))
        lines = [["case", "kind of value", "values", "tolerance", *modes], ["---"] * (4 + len(modes))]
        for case in dict.fromkeys(row.case for row in rows):
            for kind in KINDS:
                group = [row for row in rows if (row.case, row.kind) == (case, kind)]
                for tolerance in dict.fromkeys(row.tolerance for row in group):
                    cells = [
                        [row for row in group if (row.attention, row.tolerance) == (mode, tolerance)] for mode in modes
                    ]
                    worst = [max(cell, key=lambda row: row.difference).text if cell else "" for cell in cells]
                    lines.append([case, kind, str(max(map(len, cells))), str(tolerance), *worst])
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _own_noise(folders):
    """How much the reference implementation differs from itself, as recorded beside the models."""
    found = []
    for path in dict.fromkeys(folder.parent / "reference_invariances.json" for folder in folders):
        for model, values in json.loads(path.read_text()).items() if path.exists() else ():
            generated, batch = values["tensor_vs_predict"], values["batch2_vs_single"]
            found.append(
                f"- {model}: mask logits by {generated['msk']:.1e} between generating an answer and being given it, by "
                f"{max(batch['msk0'], batch['msk1']):.1e} between two images together and one at a time."
            )
    return "\n".join(found) or "- not recorded"


def write_document(table, path, folders):
    """Write the table's document where `path` says."""
    command = f"XSAM_PARITY_DOC={path} .venv/bin/python -m pytest tests/xsam_model -k golden"
    Path(path).write_text(table.document(command, folders))


_DOCUMENT = """# Parity with the reference implementation

Written by the tests; do not edit: `{command}`.
Without the variable the same tests only compare. With `-s` they print one line for each recorded value.

Measured on {date}: {count} comparisons, {failed} outside their tolerance.
{versions}, {machine} CPU, float32.

The recordings are of the reference implementation (X-SAM, branch `AAAI26_Archive` at 45d67b9, transformers 4.57.1,
float32, eager attention) with tiny models of random weights, in [tests/golden](../tests/golden). A model comes from the
reference's own weights by this package's converter, and gets the recorded image and conversation.

- **eager**: from the pixels to the result.
- **sdpa**: fused attention adds up in another order. The decoder attends where the previous mask is positive, so a
  logit near 0 could send it another way: image features are compared by themselves, and all else starts from recorded
  ones.
- **no network**: what the processor prepares; post-processing of recorded logits (`C_postprocess`).

Each row is one kind of value of one case: how many values were recorded, and the one that differs most. Numbers are
largest absolute differences, of boxes in pixels. A mask may differ in 3 pixels, or have an intersection over union of
0.99. Scores, ids, labels and boxes are those that the reference returns for the task: for panoptic segments, phrases
and sentences its score is the class probability, for instances and visual prompts that times the mean mask probability.

How much the reference implementation differs from itself:

{noise}

**Covered**: tokens and their groups, both image inputs, both towers, projectors, connector, pixel decoder, language
model, pooling, every recorded decoder layer, class and mask logits. Results of generic (panoptic, semantic, instance),
open-vocabulary, referring, reasoning, visual grounded, interactive and grounded conversation segmentation, with the
ids that the reference repeats for fused stuff (`id_policy="reference"`). Two phrases with two `<SEG>` in one
conversation. Answers that the reference generated, here given; `tests/xsam_model/test_generation.py` generates them.

**Not covered**: trained weights; half precision; GPUs; training; which random pixels a visual prompt is read at and how
its mask is brought to the canvas (the recorded pixels and masks are used). By how much another wording of the answer
changes the result was recorded without the question, so it cannot be repeated.
"""
