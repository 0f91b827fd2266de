"""Post-processes logits as a recorded case did, and compares each stored field of the result."""

import numpy as np
import torch
from pycocotools import mask as coco_mask

from tests.xsam_model.golden_table import MASK_IOU, MASK_PIXELS, SCORES, mask_difference
from xsam_model.post_processing.instances import (
    instance_segmentation,
    interactive_segmentation,
    mask_boxes,
    phrase_segmentation,
)
from xsam_model.post_processing.maps import panoptic_segmentation, semantic_segmentation


def result_kind(function, task_name=""):
    """What the reference's function for a task returns; it chooses as its name for the task says."""
    if function == "genseg_postprocess_fn":
        return "semantic" if "sem" in task_name else "instance" if "ins" in task_name else "panoptic"
    return {"vgdseg": "regions", "intseg": "interactive", "gcgseg": "caption"}.get(function.split("_")[0], "phrase")


def compare_result(compare, kind, expected, logits, geometry, *, threshold=0.0, stuff=None, prompt=None):
    """Compare one image's result: `logits` are its class and mask logits."""
    if kind == "panoptic":
        _panoptic(compare, expected, panoptic_segmentation, logits, geometry, stuff or (), threshold)
    elif kind == "semantic":
        compare.same("result.segments", None, expected["segments_info"])
        _map(compare, semantic_segmentation(*logits, geometry).labels, expected["segmentation"])
    elif kind in ("instance", "regions"):
        _instances(compare, expected, instance_segmentation(*logits, geometry, threshold=threshold), kind, logits)
    else:
        if kind == "interactive":
            found = interactive_segmentation(*logits, geometry, prompt, threshold=threshold)
        else:
            found = phrase_segmentation(*logits, geometry)
        _phrases(compare, expected, found, kind)


def _panoptic(compare, expected, segmentation, logits, geometry, stuff, threshold):
    found = segmentation(*logits, geometry, stuff=stuff, threshold=threshold, id_policy="reference")
    _map(compare, found.segmentation, expected["segmentation"])
    recorded = expected["segments_info"]
    ours = [{"id": row.id, "category_id": row.label, "isthing": row.is_thing} for row in found.segments]
    compare.same("result.segments", ours, [_without_score(row) for row in recorded])
    compare.near(
        "result.scores", [row.class_score for row in found.segments], [row["score"] for row in recorded], SCORES
    )
    # Ids of our own divide the same pixels, and never join what the reference keeps apart.
    unique = segmentation(*logits, geometry, stuff=stuff, threshold=threshold)
    ids = [row.id for row in unique.segments]
    joined = [len(found.segmentation[unique.segmentation == number].unique()) for number in ids]
    compare.same("result.unique_ids", (ids, joined), (list(range(1, len(ids) + 1)), [1] * len(ids)))
    compare.same("result.unique_void", unique.segmentation == 0, found.segmentation == 0)


def _phrases(compare, expected, found, kind):
    _map(compare, found.id_map(), expected["segmentation"])
    recorded = expected["segments_info"]
    if kind == "caption":
        ours = [{"id": index + 1, "category_id": index, "isthing": True} for index in range(len(found))]
        compare.same("result.segments", ours, [_without_score(row) for row in recorded])
        compare.near("result.scores", found.class_scores, [row["score"] for row in recorded], SCORES)
        return
    label = {"category_id": expected["sampled_labels"][0]} if kind == "interactive" else {"label_id": 0}
    compare.same("result.segments", {"id": 0, **label, "was_fused": False}, _without_score(recorded))
    scores = found.scores if kind == "interactive" else found.class_scores
    compare.near("result.scores", scores, [recorded["score"]], SCORES)


def _instances(compare, expected, found, kind, logits):
    recorded = expected["instances"]
    # A recording may name the dataset's category of each prompt, in the order of the prompts.
    sampled = expected.get("sampled_labels")
    labels = [sampled[label] if sampled else label for label in found.labels.tolist()]
    masks = [decode(rle) for rle in recorded["masks"]]
    order = match(list(zip(found.scores.tolist(), labels, found.masks.numpy(), strict=True)), recorded, masks)
    compare.same("result.count", (len(found), None in order), (len(masks), False))
    if None in order:
        return
    compare.masks(
        "result.masks", [(found.masks[place].numpy(), mask) for place, mask in zip(order, masks, strict=True)]
    )
    compare.near("result.scores", found.scores[order], recorded["scores"], SCORES)
    compare.same("result.labels", [labels[place] for place in order], recorded["classes"])
    boxes = torch.tensor(recorded["boxes_xyxy"]).reshape(-1, 4)
    compare.near("result.boxes", mask_boxes(found.masks[order]), boxes, 1.0)
    drawn = [place for place in order if found.masks[place].any()]
    ours = [{"id": index, "label_id": labels[place], "was_fused": False} for index, place in enumerate(drawn)]
    compare.same("result.segments", ours, [_without_score(row) for row in expected["segments_info"]])
    scores = [row["score"] for row in expected["segments_info"]]
    compare.near("result.scores_of_segments", found.scores[drawn], scores, SCORES)
    # Instances drawn over each other in the order of the recording.
    void = 255 if kind == "regions" else -1
    ids = torch.full(found.masks.shape[1:], void)
    for index, place in enumerate(drawn):
        ids[found.masks[place]] = index
    if kind == "regions":
        compare.same("result.num_classes", logits[0].shape[1] - 1, expected["num_classes"])
        _map(compare, ids, expected["segmentation"])
    else:
        runs = [decode_runs(row, ids.shape) for row in expected["segmentation_hf_rle"]]
        values = ids.unique().tolist()
        compare.same("result.values", len(values), len(runs))
        compare.masks("result.map", [((ids == value).numpy(), mask) for value, mask in zip(values, runs, strict=False)])


def _map(compare, ours, recorded):
    """Compare the pixels of every value that a map has, here or there."""
    values = sorted(set(ours.unique().tolist()) | {int(value) for value in recorded})
    nothing = np.zeros(tuple(ours.shape), dtype=bool)
    masks = [decode(recorded[str(value)]) if str(value) in recorded else nothing for value in values]
    compare.masks("result.map", [((ours == value).numpy(), mask) for value, mask in zip(values, masks, strict=True)])


def match(rows, recorded, masks):
    """Place of each recorded instance among (score, label, mask) rows, each used once; None where there is none."""
    left, order = list(range(len(rows))), []
    for score, label, mask in zip(recorded["scores"], recorded["classes"], masks, strict=True):
        same = (place for place in left if _alike(rows[place], score, label, mask))
        place = min(same, key=lambda place: mask_difference(rows[place][2], mask)[0], default=None)
        left = [other for other in left if other != place]
        order.append(place)
    return order


def _alike(row, score, label, mask):
    pixels, iou = mask_difference(row[2], mask)
    return row[1] == label and abs(row[0] - score) <= SCORES and (pixels <= MASK_PIXELS or iou >= MASK_IOU)


def _without_score(row):
    return {name: value for name, value in row.items() if name != "score"}


def decode(rle):
    """COCO RLE with its counts as text -> (H, W) bool."""
    return coco_mask.decode({**rle, "counts": rle["counts"].encode()}).astype(bool)


def decode_runs(runs, size):
    """Starts, counted from 1, and lengths of the runs of a mask row by row -> (H, W) bool."""
    mask = np.zeros(size[0] * size[1], dtype=bool)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start - 1 : start - 1 + length] = True
    return mask.reshape(size)
