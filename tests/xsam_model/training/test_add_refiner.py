"""A model gets a refiner and keeps the rest; the refiner's stage trains it alone, on windows."""

import json
import shutil

import pytest
import torch
from rectangles import Rectangles
from safetensors.torch import load_file

from xsam_model import XSamForSegmentation
from xsam_model.training.add_refiner import add_refiner, main
from xsam_model.training.loop.config import SourceConfig, TrainingConfig
from xsam_model.training.loop.network import XSamTraining
from xsam_model.training.loop.stages import build_optimizer, read_stage, select_parameters
from xsam_model.training.loop.trainer import train

DIMS = (8, 16, 16)
CALIBRATED = {"intseg": {"temperature": 2.0, "offset": 0.5}}


@pytest.fixture(scope="module")
def with_refiner(start_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refiner") / "start"
    assert add_refiner(start_folder, folder, DIMS) > 10_000
    return folder


def test_a_model_keeps_all_its_weights(start_folder, with_refiner, tmp_path):
    before, after = (XSamForSegmentation.from_pretrained(folder) for folder in (start_folder, with_refiner))
    assert (after.config.interactive_zoom, list(after.config.refiner_dims)) == (1.3, list(DIMS))
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    # A refiner that it has is replaced, and scores that were calibrated are so no more.
    after.refiner.out.weight.data += 1
    after.config.score_calibration = CALIBRATED
    after.save_pretrained(tmp_path / "trained")
    again = tmp_path / "again"
    (tmp_path / "trained" / "NOTICE").write_text("theirs\n")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "trained" / name).write_bytes((with_refiner / name).read_bytes())
    add_refiner(tmp_path / "trained", again, DIMS)
    new = XSamForSegmentation.from_pretrained(again)
    assert (new.refiner.out.weight - after.refiner.out.weight).abs().mean() > 0.5
    assert new.config.score_calibration is None
    assert (again / "NOTICE").read_text() == "theirs\n"


def test_its_stage_trains_the_refiner_alone_and_it_learns(with_refiner, build):
    stage = read_stage({"kind": "refiner", "steps": 12, "learning_rate": 5e-3})
    torch.manual_seed(0)
    model = XSamForSegmentation.from_pretrained(with_refiner, dtype=torch.float32)
    network = XSamTraining(model, stage.kind, weights=stage.weights).train()
    select_parameters(network, {})
    assert {name.split(".")[1] for name, one in network.named_parameters() if one.requires_grad} == {"refiner"}
    optimizer = build_optimizer(network, stage)
    batch, losses = build("intseg", count=4, zoom=1.3), []
    assert len(batch.targets.masks) == len(batch.inputs["regions"]) == 8
    for _ in range(12):
        parts = network(batch)
        assert set(parts) == {"mask", "dice", "quality"}
        loss = sum(parts.values())
        optimizer.zero_grad()
        loss.backward()
        assert all(one.grad is not None for one in network.parameters() if one.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_run_of_its_stage_changes_the_refiner_alone_and_calibrated_scores_are_no_more(with_refiner, tmp_path):
    start = shutil.copytree(with_refiner, tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps(config | {"score_calibration": CALIBRATED}))
    trained = train(
        TrainingConfig(
            output=str(tmp_path / "run"),
            model=str(start),
            sources=(SourceConfig(factory="rectangles:Rectangles", arguments={"task": "intseg"}),),
            stages=(read_stage({"kind": "refiner", "steps": 2, "batch_size": 2, "average_decay": 0.5}),),
            device="cpu",
            workers=0,
        )
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (with_refiner, trained))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if name.startswith("refiner.")}
    assert json.loads((trained / "config.json").read_text()).get("score_calibration") is None


def test_a_mask_is_rated_by_what_it_covers_of_the_whole_object(with_refiner, build, monkeypatch):
    model = XSamForSegmentation.from_pretrained(with_refiner, dtype=torch.float32)
    network = XSamTraining(model, "refiner")
    batch = build("intseg", count=1, zoom=1.3)
    truth = torch.nn.functional.adaptive_avg_pool2d(batch.targets.masks[:, None].float(), 16)[:, 0]
    monkeypatch.setattr(model, "refine", lambda **_: (40 * truth - 20, torch.zeros(len(truth))))
    batch.shares.fill_(0.25)
    found = network(batch)
    assert float(found["dice"]) < 0.3
    # A quarter is shown, so a quality of 0.25 is nearer to the truth than one of a half.
    monkeypatch.setattr(model, "refine", lambda **_: (40 * truth - 20, torch.full((len(truth),), 1 / 3).log()))
    assert float(network(batch)["quality"]) < float(found["quality"])


def test_a_stage_without_a_refiner_and_a_batch_without_prompts_are_refused(model, build):
    with pytest.raises(ValueError, match=r"begin with python -m xsam_model\.training\.add_refiner"):
        XSamTraining(model, "refiner")
    with pytest.raises(ValueError, match="source 'ovseg' has no visual prompt on a mask in 2 samples"):
        build("ovseg", zoom=1.3, source=Rectangles("ovseg"))


def test_nothing_is_written_for_a_model_that_cannot_have_one(start_folder, tmp_path, capsys):
    arguments = ["--model", str(start_folder), "--output", str(tmp_path / "new")]
    assert main([*arguments, "--dims", "8", "9", "8"]) == 2
    assert "refiner_dims must be 3 multiples of 8" in capsys.readouterr().err
    assert main(["--model", str(tmp_path), "--output", str(tmp_path / "new")]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
