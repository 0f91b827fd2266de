"""A trained model is shipped at half its size, and computes as before."""

import json
import shutil

import pytest
import torch

from xsam_model import XSamSegmenter
from xsam_model.training.export_model import export_model


def test_shipped_weights_are_half_and_compute_in_float32(tiny_folder, tmp_path, picture):
    folder = export_model(tiny_folder, tmp_path / "shipped")
    assert not (folder / "NOTICE").exists()
    before, after = ((path / "model.safetensors").stat().st_size for path in (tiny_folder, folder))
    assert after < 0.55 * before
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    shipped, trained = XSamSegmenter.from_pretrained(folder), XSamSegmenter.from_pretrained(tiny_folder)
    assert {parameter.dtype for parameter in shipped.model.parameters()} == {torch.float32}
    asked = {"task": "refseg", "conditions": [["a dog"]]}
    ours, theirs = (one.segment([picture(40, 60)], **asked)[0].segmentation for one in (shipped, trained))
    assert (ours.masks & theirs.masks).sum() > 0.9 * (ours.masks | theirs.masks).sum()


def test_the_notice_of_pretrained_weights_is_shipped_with_them(tiny_folder, tmp_path):
    trained = shutil.copytree(tiny_folder, tmp_path / "trained")
    (trained / "NOTICE").write_text("whose they are\n")
    assert (export_model(trained, tmp_path / "shipped") / "NOTICE").read_text() == "whose they are\n"


def test_weights_that_do_not_fit_are_refused(tiny_model, tiny_processor, tmp_path):
    folder = tmp_path / "large"
    tiny_model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    model = type(tiny_model).from_pretrained(folder)
    with torch.no_grad():
        model.bg_embeds.weight.fill_(1e6)
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"do not fit float16: bg_embeds\.weight"):
        export_model(folder, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()
