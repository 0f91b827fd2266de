import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rectangles import HalfEmpty
from safetensors.torch import load_file

from tests.support.fork_server import fork_server
from xsam_model import XSamForSegmentation, XSamProcessor
from xsam_model.losses.point_sampling import PointSampling
from xsam_model.losses.targets import LossWeights
from xsam_model.training.__main__ import main
from xsam_model.training.export_model import export_model
from xsam_model.training.loop.config import SourceConfig, TrainingConfig, read_config
from xsam_model.training.loop.launch import STOPPED, launch
from xsam_model.training.loop.stages import StageConfig
from xsam_model.training.loop.trainer import train
from xsam_model.training.samples.sources import BatchPlan

ROOT = Path(__file__).parents[4]
STAGE = {"batch_size": 4, "learning_rate": 1e-3, "points": PointSampling(num_points=128)}


def source(task):
    return SourceConfig(factory="rectangles:Rectangles", arguments={"task": task})


def settings_of(start_folder, folder):
    stages = (
        StageConfig(kind="segmentor", steps=4, sources=("ovseg",), weights=LossWeights(dense=1.0), **STAGE),
        StageConfig(
            kind="mixed", steps=6, optimizer="muon", average_decay=0.9, weights=LossWeights(dense=1.0), **STAGE
        ),
    )
    return TrainingConfig(
        output=str(folder / "run"),
        model=str(start_folder),
        sources=(source("ovseg"), source("vgdseg"), source("refseg")),
        stages=stages,
        device="cpu",
        log_every_steps=2,
        checkpoint_every_minutes=0,
        checkpoint_every_steps=2,
        workers=0,
    )


@pytest.fixture(scope="module", autouse=True)
def server():
    """Those that load data are forked from it too: Python has one server, and the first that needs it starts it."""
    with fork_server("xsam_model.training.__main__", "xsam_model.training.loop.trainer") as server:
        yield server


@pytest.fixture
def settings(start_folder, tmp_path):
    return settings_of(start_folder, tmp_path)


@pytest.fixture(scope="module")
def whole(start_folder, tmp_path_factory):
    """The model of a run of these settings that nothing broke."""
    return train(settings_of(start_folder, tmp_path_factory.mktemp("whole")))


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def rows(folder):
    with (Path(folder) / "metrics.csv").open() as file:
        return [{name: row[name] for name in row if "second" not in name} for row in csv.DictReader(file)]


class Killed(BaseException):
    """Ends a run as a kill does: nothing after it runs."""


def test_a_killed_run_ends_as_an_unbroken_one_does(settings, whole, tmp_path):
    broken = replace(settings, output=str(tmp_path / "broken"), workers=1)

    def say_until(words):
        def say(line):
            if line.startswith(words):
                raise Killed

        return say

    # After step 4 and before its checkpoint: what was reported since the one before is reported again, once.
    for words in ("1-segmentor 4", "2-mixed 4"):
        with pytest.raises(Killed):
            train(broken, say_until(words))
    resumed = train(broken)
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    for stage in ("1-segmentor", "2-mixed"):
        assert rows(whole.parent.parent / stage) == rows(resumed.parent.parent / stage)
    # It runs as any other model does, and a finished run does nothing more.
    XSamForSegmentation.from_pretrained(resumed)
    XSamProcessor.from_pretrained(resumed)
    lines = []
    assert train(broken, lines.append) == resumed
    assert lines == [f"trained: {resumed}"]


def test_a_run_stops_after_its_minutes_and_goes_on(settings, whole, tmp_path):
    slices = replace(settings, output=str(tmp_path / "slices"), max_minutes=1e-6, stages=settings.stages[:1])
    calls = 0
    while train(slices) is None:
        calls += 1
        checkpoints = sorted(Path(slices.output).glob("1-segmentor/checkpoints/*"))
        assert checkpoints[-1].name == f"step-{calls:08d}"
        assert len(checkpoints) <= 2
    assert calls == 3
    for name, value in weights(whole.parent.parent / "1-segmentor" / "model").items():
        assert torch.equal(value, weights(slices.stage_folder(0) / "model")[name]), name


def test_a_checkpoint_of_other_settings_is_refused(settings):
    train(replace(settings, max_minutes=1e-6))
    changed = replace(settings, stages=(replace(settings.stages[0], learning_rate=1.0), settings.stages[1]))
    with pytest.raises(ValueError, match="other settings of learning_rate"):
        train(changed)


def test_a_checkpoint_holds_the_weights_that_are_shipped(whole, tmp_path):
    trained = weights(whole)
    first, last = sorted((whole.parent / "checkpoints").iterdir())
    start = whole.parent.parent / "1-segmentor" / "model"
    shipped = weights(export_model(start, tmp_path / "shipped", last))
    earlier = weights(export_model(start, tmp_path / "earlier", first))
    mean = weights(export_model(start, tmp_path / "mean", first, last))
    assert trained.keys() == shipped.keys()
    for name, value in shipped.items():
        torch.testing.assert_close(value, trained[name].half(), atol=0, rtol=0)
        torch.testing.assert_close(mean[name].float(), (earlier[name].float() + value) / 2, atol=1e-3, rtol=1e-3)
    assert any((mean[name] != value).any() for name, value in shipped.items())
    with pytest.raises(ValueError, match="no checkpoint of a training stage"):
        export_model(start, tmp_path / "other", start / "missing")


def test_accumulated_passes_equal_one(settings, tmp_path):
    # Two passes are divided by masks of their own, so both halves must have the same number: two in each picture.
    stages = (replace(settings.stages[0], weights=LossWeights()),)
    one = train(replace(settings, stages=stages, output=str(tmp_path / "one")))
    two = train(replace(settings, stages=(replace(stages[0], accumulation=2),), output=str(tmp_path / "two")))
    for name, value in weights(one).items():
        torch.testing.assert_close(value, weights(two)[name], atol=5e-4, rtol=0)


TOML = """
output = "{output}"
model = "{model}"
device = "cpu"
threads = 1
log_every_steps = 1
[[sources]]
factory = "rectangles:{data}"
arguments = {{ task = "ovseg" }}
[[stages]]
kind = "mixed"
steps = {steps}
batch_size = 4
learning_rate = 1e-3
points = {{ num_points = 128 }}
weights = {{ dense = {dense} }}
"""


def run_command(printed, arguments):
    os.dup2(printed.fileno(), sys.stdout.fileno())
    sys.argv = ["xsam_model.training", *arguments]
    sys.exit(main())


@pytest.fixture
def start(server):
    """Start the command in a process of its own; start(*arguments) -> the process, and the lines that it prints."""

    started = []

    def run(*arguments):
        printed, theirs = server.Pipe(duplex=False)
        process = server.Process(target=run_command, args=(theirs, [str(one) for one in arguments]))
        process.start()
        started.append(process)
        theirs.close()
        return process, open(os.dup(printed.fileno()))

    yield run
    for process in started:
        process.kill()


@pytest.fixture
def launched(start_folder, tmp_path):
    """Write a config file."""

    def write(name, steps=3, data="Rectangles", dense=0.0):
        file = tmp_path / f"{name}.toml"
        file.write_text(TOML.format(output=tmp_path / name, model=start_folder, steps=steps, data=data, dense=dense))
        return file

    return write


def compare_two_processes_with_one(launched, start, tmp_path, *names, **options):
    assert launch(launched("one", **options)) == 0
    process, lines = start("--config", launched("two", **options), "--processes", 2)
    with lines:
        assert "trained: " in lines.read()
    process.join()
    assert process.exitcode == 0
    one, two = (tmp_path / name / "1-mixed" for name in ("one", "two"))
    for mine, theirs in zip(rows(one), rows(two), strict=True):
        for name in ("total", "language", "classes", "mask", "dice", "gradient_norm", *names):
            assert float(mine[name]) == pytest.approx(float(theirs[name]), rel=2e-3), name
    for name, value in weights(one / "model").items():
        torch.testing.assert_close(value, weights(two / "model")[name], atol=5e-4, rtol=0)


def test_two_processes_equal_one(launched, start, tmp_path):
    compare_two_processes_with_one(launched, start, tmp_path)


def test_a_process_whose_pictures_show_nothing_keeps_up_with_the_other(launched, start, tmp_path):
    # Some step must have masks in one process alone: the other has no part in a loss, but in its mean.
    data, steps = HalfEmpty(), 6
    plan = BatchPlan([len(data)], 4, seed=0)
    filled = [[data.is_filled(index) for index in plan.at(step)[1]] for step in range(steps)]
    assert any(any(places[:2]) != any(places[2:]) for places in filled)
    compare_two_processes_with_one(launched, start, tmp_path, "dense", steps=steps, data="HalfEmpty", dense=1.0)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_the_same_command_goes_on(launched, start, tmp_path, processes):
    command = ["--config", launched("run", steps=500), "--processes", processes]
    process, lines = start(*command)
    with lines:
        for line in lines:
            if " 2/500 " in line:
                process.terminate()
                break
        rest = lines.read()
    process.join(60)
    assert process.exitcode == STOPPED
    assert "the same command goes on" in rest
    (checkpoint,) = (tmp_path / "run/1-mixed/checkpoints").iterdir()
    first = int(checkpoint.name.removeprefix("step-"))
    process, lines = start(*command, "--max-minutes", "0.00001")
    with lines:
        assert f"stopped at step {first + 1} of 500" in lines.read()
    process.join(60)
    assert process.exitcode == STOPPED


def test_mistakes_in_a_file_are_named(tmp_path):
    file = tmp_path / "wrong.toml"
    stage = '[[stages]]\nkind = "mixed"\nsteps = 3\n'
    data = '[[sources]]\nfactory = "rectangles:Rectangles"\n'
    for text, message in (
        (f'output = "x"\n{data}', "at least one of"),
        (f'output = "x"\nspeed = 3\n{data}{stage}', "unknown settings speed"),
        (f'output = "x"\nprecision = "int8"\n{data}{stage}', "float32 or bfloat16"),
        (f'output = "x"\n{data}{stage}speed = 3\n', "speed"),
        ("output = ", "wrong.toml"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(file)
    with pytest.raises(ValueError, match="cannot be loaded"):
        SourceConfig(factory="rectangles:Circles").open()


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("train*.toml")), ids=lambda file: file.stem)
def test_example_runs_can_be_read(file):
    config, names = read_config(file), set()
    drawn = [one for one in config.sources if one.factory == "xsam_model.training.scenes.source:scenes"]
    assert drawn
    # The others read files that are made by the commands at the top.
    names |= {str(one.arguments["name"]) for one in config.sources if one not in drawn}
    for source in drawn:
        source_of = SourceConfig(factory=source.factory, arguments={**source.arguments, "assets": "builtin"}).open()
        assert source_of.name == source.arguments.get("name", f"scenes-{source.arguments['task']}")
        names.add(source_of.name)
    assert {"mixed", "refiner"} & {stage.kind for stage in config.stages}
    assert all(set(stage.sources) <= names for stage in config.stages)
