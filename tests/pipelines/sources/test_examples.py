"""The example photographs are shown to users first: they must all decode, be credited, and fit their prompts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.images.decode import decode_image
from pipelines.masks.regions import check_region
from pipelines.planning.prompt_table import join_prompts, read_prompt_table
from pipelines.sources.image_batches import to_refs
from pipelines.sources.listing import list_batches
from pipelines.types import REGION_KINDS, Image, ImageRef

EXAMPLES = Path(__file__).parents[3] / "examples"
FREE_LICENSES = ("CC0 1.0", "CC BY 2.0", "CC BY 4.0", "CC BY-SA 3.0", "CC BY-SA 4.0", "public domain")


@pytest.fixture(scope="module")
def images() -> list[Image]:
    joined = join_prompts(list_batches(str(EXAMPLES / "photos")), read_prompt_table(str(EXAMPLES / "prompts.csv")))
    return [decode_image(Path(ref.uri).read_bytes(), ref) for ref in to_refs(joined)]


def test_every_photograph_is_credited_with_a_free_license() -> None:
    table = re.findall(
        r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \|", (EXAMPLES / "CREDITS.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, *_ in table) == sorted(path.name for path in (EXAMPLES / "photos").iterdir())
    for name, title, author, license in table:
        assert title, name
        assert author, name
        assert any(free in license for free in FREE_LICENSES), name


def test_scenes_are_small_fit_their_truth_and_name_credited_backgrounds() -> None:
    truth = json.loads((EXAMPLES / "scenes" / "instances.json").read_text())
    pictures = sorted((EXAMPLES / "scenes").glob("*.png"))
    assert [image["file_name"] for image in truth["images"]] == [path.name for path in pictures]
    assert sum(path.stat().st_size for path in pictures) < 2_000_000
    credits_text = (EXAMPLES / "CREDITS.md").read_text()
    for image, path in zip(truth["images"], pictures, strict=True):
        decoded = decode_image(path.read_bytes(), ImageRef(image_id=path.name, uri=str(path)))
        assert decoded.size_hw == (image["height"], image["width"])
        assert image["ground"] == "gradient" or f"`{image['ground'].split('_by_')[0]}`" in credits_text
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    assert all(entry["segmentation"]["size"] == sizes[entry["image_id"]] for entry in truth["annotations"])
    assert all(sum(entry["segmentation"]["counts"][1::2]) == entry["area"] > 0 for entry in truth["annotations"])


def test_photographs_are_small_and_varied(images: list[Image]) -> None:
    assert 12 <= len(images) <= 16
    assert sum(image.num_bytes for image in images) < 3_000_000
    assert max(max(image.size_hw) for image in images) <= 1024
    assert any(image.size_hw[0] > image.size_hw[1] for image in images), "a portrait"
    assert any(image.exif_orientation != 1 for image in images), "an EXIF orientation"
    assert {Path(image.ref.uri).suffix for image in images} >= {".jpg", ".png", ".webp"}


def test_every_prompt_fits_its_photograph(images: list[Image]) -> None:
    table = read_prompt_table(str(EXAMPLES / "prompts.csv"))
    asked = [(prompt, image) for image in images for prompt in image.ref.prompts]
    assert table.rejected == ()
    assert len(asked) == table.num_rows
    assert [check_region(prompt, image.size_hw) for prompt, image in asked] == [None] * len(asked)
    kinds = {prompt.region.kind for prompt, _ in asked if prompt.region}
    assert kinds >= set(REGION_KINDS) - {"mask"}
    assert {prompt.task for prompt, _ in asked} == {"vgdseg", "intseg", "refseg", "reaseg"}
