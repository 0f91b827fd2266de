"""What a person gives of exemplars, the prompts made of them, and the digest that tells whether two ask the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipelines.planning.exemplars.config import (
    ExemplarConfig,
    FrozenExemplar,
    exemplar_prompts,
    exemplars_sha256,
    selections,
)
from pipelines.types import Region

BOX: dict[str, Any] = {"label": "pallet", "image": "a.png", "kind": "box", "coordinates": [1, 2, 30, 40]}


def frozen(**changes: Any) -> FrozenExemplar:
    return FrozenExemplar(**{**BOX, "uri": "/photos/a.png", "sha256": "ab" * 32, **changes})


def test_coordinates_may_be_flat_or_pairs() -> None:
    scribble = {**BOX, "kind": "scribble"}
    flat = ExemplarConfig(**{**scribble, "coordinates": [1, 2, 3, 4]})
    pairs = ExemplarConfig(**{**scribble, "coordinates": [[1, 2], [3, 4]]})
    assert flat.region == pairs.region == Region(kind="scribble", coordinates=(1.0, 2.0, 3.0, 4.0))


def test_a_mask_is_coco_rle() -> None:
    mask = {"size": [4, 4], "counts": [5, 2, 9]}
    one = ExemplarConfig(label="pallet", image="a.png", kind="mask", segmentation=mask)
    assert one.region.mask is not None
    assert one.region.mask.size_hw == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinates": [1, 2, 0, 4]}, "exemplar of 'pallet' in 'a.png': box has no area"),
        ({"coordinates": []}, "has no coordinates"),
        ({"label": " "}, "needs a label and an image"),
        ({"image": ""}, "needs a label and an image"),
        ({"image": "https://me:secret@example.org/a.png"}, "carries"),
        ({"kind": "circle"}, "kind"),
    ],
)
def test_what_is_no_exemplar_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExemplarConfig(**{**BOX, **changes})


def test_those_of_one_label_are_one_prompt_whatever_their_order() -> None:
    one, other, cat = frozen(), frozen(coordinates=[5, 5, 9, 9]), frozen(label="cat", sha256="cd" * 32)
    pallet, of_cat = exemplar_prompts([one, cat, other, one])
    assert (pallet.prompt_id, pallet.task, pallet.text, pallet.category_name) == (
        "vgdseg:pallet", "vgdseg", "pallet", "pallet",
    )  # fmt: skip
    assert pallet.region is None
    assert len(pallet.exemplars) == 2
    assert of_cat.prompt_id == "vgdseg:cat"
    assert exemplar_prompts([other, one])[0].exemplars == pallet.exemplars


def test_the_digest_tells_what_is_asked_and_not_where_the_images_are() -> None:
    same = exemplars_sha256([frozen()])
    assert exemplars_sha256([frozen(image="b.png", uri="/else/b.png")]) == same
    assert exemplars_sha256([frozen(), frozen()]) == same
    others = (
        {"sha256": "cd" * 32},
        {"label": "crate"},
        {"coordinates": [1, 2, 30, 41]},
        {"images": "new/*"},
        {"kind": "mask", "coordinates": (), "segmentation": {"size": [4, 4], "counts": [5, 2, 9]}},
    )
    digests = {exemplars_sha256([frozen(**changes)]) for changes in others}
    assert len(digests - {same}) == len(others)


def test_exemplars_of_one_label_are_asked_of_the_same_images() -> None:
    assert selections([frozen(), frozen(label="cat", images="cats/*")]) == {"vgdseg:cat": "cats/*"}
    with pytest.raises(ValueError, match=r"'pallet' are to be asked of different images: all, 'new/\*'"):
        selections([frozen(), frozen(images="new/*")])


def test_what_was_given_comes_back_from_what_was_frozen() -> None:
    given = ExemplarConfig(**BOX)
    assert FrozenExemplar(**dict(given), uri="/a.png", sha256="ab").given == given
    assert FrozenExemplar.model_validate(frozen().model_dump(mode="json")) == frozen()
