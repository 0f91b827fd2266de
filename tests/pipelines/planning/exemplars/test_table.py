"""Exemplars among the rows of a prompt table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import PromptTableError
from pipelines.planning.exemplars.table import table_exemplars
from pipelines.planning.prompt_table import read_prompt_table

HEAD = "image_id,prompt_id,kind,coordinates,label,task,exemplar\n"


def table(folder: Path, *rows: str, head: str = HEAD) -> str:
    path = folder / "prompts.csv"
    path.write_text(head + "".join(f"{row}\n" for row in rows))
    return str(path)


def test_rows_with_an_exemplar_are_asked_of_many_images_and_the_others_of_one(tmp_path: Path) -> None:
    uri = table(tmp_path, ",,box,1 2 3 4,pallet,,a.png", "b.png,p,point,5 6,,,", "new/*,crate,point,7 8,,vgdseg,c.png")
    pallet, crate = table_exemplars(uri)
    assert (pallet.label, pallet.image, pallet.images, pallet.region.kind) == ("pallet", "a.png", "", "box")
    assert (crate.label, crate.image, crate.images) == ("crate", "c.png", "new/*")
    own = read_prompt_table(uri)
    assert list(own.by_image) == ["b.png"]
    assert own.num_rows == 1
    assert not own.rejected


def test_a_table_of_exemplars_alone_needs_no_column_of_images(tmp_path: Path) -> None:
    uri = table(tmp_path, "a.png,pallet,mask", head="exemplar,label,kind\n")
    with pytest.raises(PromptTableError, match="line 2, an exemplar: mask has no segmentation"):
        list(table_exemplars(uri))
    uri = table(tmp_path, "a.png,pallet,point,1 2", head="exemplar,label,kind,coordinates\n")
    assert [one.label for one in table_exemplars(uri)] == ["pallet"]
    assert not read_prompt_table(uri).by_image


def test_masks_of_json_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    mask = {"size": [4, 4], "counts": [5, 2, 9]}
    rows = [
        {"image_id": "b.png", "prompt_id": "p", "kind": "point", "coordinates": [1, 2]},
        {"exemplar": "a.png", "label": "x", "kind": "mask", "segmentation": mask},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = table_exemplars(str(path))
    assert one.region.mask is not None
    assert one.region.mask.size_hw == (4, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",p,box,1 2 3 4,pallet,,a.png", "known by its label alone"),
        (",,box,1 2 3 4,pallet,intseg,a.png", "task 'intseg' takes no exemplar"),
        (",,box,1 2 3,pallet,,a.png", "box needs x, y, width, height"),
        (",,box,1 2 3 4,,,a.png", "needs a label"),
    ],
)
def test_a_row_that_is_no_exemplar_ends_it(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(PromptTableError, match=f"prompts.csv: line 2, an exemplar: .*{message}"):
        list(table_exemplars(table(tmp_path, row)))


def test_other_tables_have_none(tmp_path: Path) -> None:
    assert not list(table_exemplars(table(tmp_path, "a.png,p,point,1 2", head="image_id,prompt_id,kind,coordinates\n")))
