"""What the commands and programs of the documents find in their folder: a small output, and files of their names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pipelines.storage.store import open_store
from pipelines.table.dataset_card import leave_card
from pipelines.types import Caption, CaptionPhrase
from tests.support.commands import command
from tests.support.drivers import REPOSITORY
from tests.support.fakes import write_images
from tests.support.labeled import box, mask, named, write_output

_SIZE = (256, 256)
_IMAGES = ("scene-00.png", "scene-01.png", "2026/11/scene-02.png", "scene-03.png")
_CONFIG = """source = "photos"
output = "labels"
categories = ["forklift", "pallet"]
"""


def write_samples(folder: Path) -> None:
    """Write an output under both names that documents use, and the other files that they read."""
    _write_output(folder / "demo-out")
    leave_card(open_store(str(folder / "demo-out")))  # as a run does at its end
    shutil.copytree(folder / "demo-out", folder / "OUTPUT")
    write_images(folder / "photos", 3)
    (folder / "label.toml").write_text(_CONFIG)
    (folder / "examples").symlink_to(REPOSITORY / "examples")
    sites = "".join(f"{name},{site}\n" for name, site in zip(_IMAGES, "xyxy", strict=True))
    (folder / "meta.csv").write_text("image_id,site\n" + sites)
    scores = "forklift,0.5,0.6\npallet,0.5,0.7\nforklift,0.8,0.9\npallet,0.8,0.95\n"
    (folder / "calibration.csv").write_text("category_name,score,probability\n" + scores)
    (folder / "chosen.csv").write_text(f"image_id\n{_IMAGES[0]}\n")
    truth = folder / "instances.json"
    ended = command("export", folder / "OUTPUT", "--to", truth, "--task", "ovseg")
    assert ended.code == 0, ended
    shutil.copy(truth, folder / "FILE")
    edited = json.loads(truth.read_text())
    edited["annotations"].pop()
    (folder / "edited.json").write_text(json.dumps(edited))


def _write_output(uri: Path) -> None:
    """Two runs over scenes of the examples: names, a panoptic map and a caption; one image is quarantined."""
    names = named("ovseg", "forklift", "pallet")
    sky, ground = named("ovseg_panoptic", "sky", "ground")
    (caption,) = named("gcgseg", "caption")
    left, right = box(0, 0, 100, 100, _SIZE), box(50, 0, 100, 100, _SIZE)
    upper, lower = box(0, 0, 256, 128, _SIZE), box(0, 128, 256, 128, _SIZE)
    first, second, third, broken = _IMAGES
    found = {
        first: [mask(names[0], left, 0.9), mask(names[1], right, 0.8), mask(sky, upper), mask(ground, lower)],
        second: [mask(names[0], right, 0.52), mask(caption, left, 0.7)],
        third: [mask(names[1], left, 0.55)],
        broken: None,
    }
    said = {second: [Caption(prompt=caption, text="A box.", phrases=(CaptionPhrase(text="box", start=2, end=5),))]}
    uris = {name: str(REPOSITORY / "examples" / "scenes" / Path(name).name) for name in _IMAGES}
    sizes = dict.fromkeys(_IMAGES, _SIZE)
    common = [*names, sky, ground, caption]
    config = {"source": {"uri": "photos"}, "output": {"uri": str(uri)}, "categories": [name.text for name in names]}
    write_output(uri, found, common=common, said=said, uris=uris, sizes=sizes, run_id="run-1", config=config)
    again = {first: [mask(names[0], right, 0.6)]}
    write_output(uri, again, common=names[:1], uris=uris, sizes=sizes, run_id="run-2", config=config)
