"""Fitting scores: what was distorted is found again, what cannot be told is left, and the model's folder says it."""

import json
import shutil

import numpy as np
import pytest

from actors.scenes.calibrate import Rated, draw_samples, fit_scores, fit_task, main, read_sources
from pipelines.errors import SourceError
from pipelines.evaluation.score_calibration import expected_calibration_error
from xsam_model.testing import save_untrained

SOURCES = """
[[sources]]
factory = "xsam_model.training.scenes.source:scenes"
[sources.arguments]
assets = "builtin"
task = "TASK"
split = "test"
scene = { side_pixels = 64 }
ask = { max_prompts = 3 }
"""


def rated(temperature, offset, count=20_000, seed=0):
    """Masks whose true probability is their score's logit divided by a temperature plus an offset."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, count)
    right = random.random(count) < 1 / (1 + np.exp(-(logits / temperature + offset)))
    return Rated(1 / (1 + np.exp(-logits)), right, np.arange(count) // 5)


@pytest.mark.parametrize(("temperature", "offset"), [(0.4, 0.3), (1.0, 0.0), (2.5, -1.2)])
def test_temperature_and_offset_are_found_again(temperature, offset):
    found = fit_scores(rated(temperature, offset))
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.offset == pytest.approx(offset, abs=0.06)


def test_a_task_is_calibrated_only_if_that_helps_on_samples_it_was_not_fitted_to():
    fit = fit_task(rated(2.5, -1.2))
    assert fit.after < 0.02 < 0.1 < fit.before
    assert fit.calibration is not None
    others = rated(2.5, -1.2, seed=1)
    scores = 1 / (1 + ((1 - others.scores) / others.scores) ** (1 / fit.calibration.temperature)
                  * np.exp(-fit.calibration.offset))  # fmt: skip
    assert expected_calibration_error(scores, others.right) < 0.02
    # Its own scores are the probabilities: no fit to half of few masks is better on the other half.
    honest = [fit_task(rated(1.0, 0.0, count=400, seed=seed)) for seed in range(8)]
    assert all((fit.calibration is None) == (fit.after >= fit.before) for fit in honest)
    assert any(fit.calibration is None for fit in honest)
    assert fit_task(rated(2.5, -1.2, count=24)).calibration is None
    assert fit_task(rated(2.5, -1.2, count=0)).masks == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_untrained(tmp_path_factory.mktemp("model") / "model")


def test_the_command_writes_what_it_fits_and_leaves_other_tasks_and_all_else_alone(model, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    before = json.loads((folder / "config.json").read_text())
    kept = {"refseg": {"temperature": 2.0, "offset": 0.0}}
    old = kept | {"ovseg": {"temperature": 9.0, "offset": 9.0}}
    (folder / "config.json").write_text(json.dumps(before | {"score_calibration": old}))
    config = tmp_path / "sources.toml"
    config.write_text(SOURCES.replace("TASK", "ovseg") + SOURCES.replace("TASK", "intseg"))
    assert main(["--model", str(folder), "--config", str(config), "--count", "1", "--threads", "1"]) == 0
    # One scene of an untrained model tells nothing.
    shown = capsys.readouterr().out
    assert "ovseg: " in shown
    assert shown.count("left as it is") == 2
    after = json.loads((folder / "config.json").read_text())
    assert after.pop("score_calibration") == kept
    assert after == {name: value for name, value in before.items() if name != "score_calibration"}
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in model.iterdir())


def test_of_a_task_that_asks_for_one_mask_one_question_is_asked_of_each_sample(tmp_path):
    config = tmp_path / "sources.toml"
    config.write_text(SOURCES.replace("TASK", "intseg") + SOURCES.replace("TASK", "vgdseg"))
    samples = draw_samples(read_sources(config), 5, seed=1)
    assert [len(samples[task]) for task in ("intseg", "vgdseg")] == [5, 5]
    assert all((len(one.visual_prompts), len(one.masks)) == (1, 1) for one in samples["intseg"])
    again, other = (draw_samples(read_sources(config), 5, seed=seed)["intseg"] for seed in (1, 2))
    assert [one.image.tobytes() for one in samples["intseg"]] == [one.image.tobytes() for one in again]
    assert not {one.image.tobytes() for one in again} & {one.image.tobytes() for one in other}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no"),
        ("[[sources", "sources.toml"),
        ('[[sources]]\nfactory = "no.module:name"', "cannot be loaded"),
        (SOURCES.replace("TASK", "chat"), "of the task chat; scores are fitted for genseg"),
        (None, "No such file"),
    ],
)
def test_sources_that_cannot_be_asked_are_named_before_the_model_is_loaded(model, tmp_path, capsys, text, message):
    config = tmp_path / "sources.toml"
    if text is not None:
        config.write_text(text)
    written = (model / "config.json").read_bytes()
    assert main(["--model", str(model), "--config", str(config)]) == 2
    assert message in capsys.readouterr().err
    assert (model / "config.json").read_bytes() == written


def test_a_folder_without_a_model_is_named(tmp_path, capsys):
    assert main(["--model", str(tmp_path), "--config", "sources.toml"]) == 2
    assert "holds no config.json" in capsys.readouterr().err
    with pytest.raises(SourceError, match="--config"):
        read_sources(tmp_path / "gone.toml")
