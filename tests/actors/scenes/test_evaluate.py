"""Testing on scenes: who answers with the truth is perfect, who answers with nothing is not."""

import json

import pytest
import torch

from actors.scenes.evaluate import PARTS, PROMPT_KINDS, count_scenes, evaluate_scenes, main
from actors.scenes.samples import SceneTest
from xsam_model import InstanceSegmentation, PhraseSegmentation, XSamResult
from xsam_model.post_processing.maps import PanopticSegmentation, Segment
from xsam_model.testing import save_untrained
from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.scene import SceneConfig


class Oracle:
    """Knows every sample of a test, and answers with its truth, or with `spoil` of it."""

    def __init__(self, test, spoil=lambda masks: masks):
        self.samples, self.spoil = {}, spoil
        draw = test.samples

        def remember(task, **asked):
            drawn = draw(task, **asked)
            self.samples |= {(task, self.key(sample.image)): sample for sample in drawn}
            return drawn

        object.__setattr__(test, "samples", remember)

    @staticmethod
    def key(image):
        return image.tobytes()

    def encode(self, images):
        return images

    def pool_regions(self, images, image, masks):
        assert all(mask.any() and mask.shape == images[image].shape[:2] for mask in masks)
        return torch.ones(len(masks), 2)

    def segment(self, images, *, task, segmentation="instance", stuff=(), **asked):
        samples = [self.samples[task, self.key(image)] for image in images]
        if segmentation == "panoptic":
            return [self.panoptic(sample, stuff) for sample in samples]
        return [self.answer(sample, task) for sample in samples]

    def answer(self, sample, task):
        masks = self.spoil(torch.from_numpy(sample.masks))
        ones = torch.ones(len(masks))
        if task in ("ovseg", "vgdseg"):
            found = InstanceSegmentation(ones, ones, torch.from_numpy(sample.labels), torch.arange(len(masks)), masks)
        else:
            found = PhraseSegmentation(ones, ones, ones, torch.arange(len(masks)), masks)
        return XSamResult(segmentation=found)

    def panoptic(self, sample, stuff):
        ids, segments = torch.zeros(sample.image.shape[:2], dtype=torch.int32), []
        for number, (mask, label) in enumerate(
            zip(self.spoil(torch.from_numpy(sample.masks)), sample.labels.tolist(), strict=True), 1
        ):
            ids[mask] = number
            segments.append(Segment(number, label, sample.conditions[label] not in stuff, 1.0, int(mask.sum())))
        return XSamResult(segmentation=PanopticSegmentation(ids, tuple(segments)))


class Mute(Oracle):
    """Finds the phrases of a caption that is given, and has no words of its own."""

    def segment(self, images, *, answer=None, **asked):
        return super().segment(images, **asked) if answer else [XSamResult(segmentation=None) for _ in images]


def scene_test(**fields):
    return SceneTest(assets=SceneAssets.builtin(), scene=SceneConfig(side_pixels=64), count=12, num_names=4, **fields)


def test_the_truth_scores_full_marks_and_its_opposite_none():
    test = scene_test()
    figures = evaluate_scenes(Oracle(test), test, say=lambda line: None)
    assert figures.pop("ref_relative_count") == 12
    assert set(figures) >= {"ov_4_ap50", "ov_all_ap50", "ref_ciou", "ref_relative_blind_ciou", "int_point_miou"}
    assert set(figures) >= {"gcg_given_miou", "gcg_miou", "gcg_ap50", "pan_pq", "pan_pq_things", "pan_pq_stuff"}
    assert {f"vgd_{kind}_ap50" for kind in PROMPT_KINDS} <= set(figures)
    assert all(value == pytest.approx(100) for value in figures.values()), figures
    test = scene_test()
    wrong = evaluate_scenes(Oracle(test, spoil=torch.logical_not), test, say=lambda line: None)
    # What is not one thing may be another of its kind, and phrases and segments are paired with whatever is alike.
    paired = {name for name in wrong if name.startswith(("gcg_miou", "gcg_ap50", "pan_"))}
    low = {name: value for name, value in wrong.items() if name not in {*paired, "ref_relative_count"}}
    assert all(value < 5 for value in low.values()), low
    assert all(wrong[name] < 50 for name in paired), wrong


def test_who_says_nothing_finds_nothing():
    test = scene_test()
    figures = evaluate_scenes(Mute(test), test, say=lambda line: None, only=["gcg"])
    assert figures == pytest.approx({"gcg_given_miou": 100, "gcg_miou": 0, "gcg_ap50": 0})


def test_parts_run_alone_and_their_scenes_are_counted():
    counted = []
    test = scene_test(on_asked=counted.append)
    lines = []
    figures = evaluate_scenes(Oracle(test), test, lines.append, only=["ref", "pan"])
    assert {name.split("_")[0] for name in figures} == {"ref", "pan"}
    assert len(lines) == 2
    assert "pan_pq 100.0" in lines[1]
    assert sum(counted) == count_scenes(test, ["ref", "pan"]) == 12 * 4
    assert count_scenes(test) == 12 * 15


def test_exemplars_are_other_scenes_in_which_a_category_is_marked():
    test = scene_test()
    samples = test.samples("vgdseg", prompt_kinds=("box",))
    names = {name for sample in samples for name in sample.conditions}
    marked = test.exemplars(names, 3, prompt_kinds=("box",))
    assert set(marked) == names
    asked = {sample.image.tobytes() for sample in samples}
    for name, drawn in marked.items():
        assert len(drawn) == 3
        for one in drawn:
            assert one.conditions == (name,)
            assert one.image.tobytes() not in asked
            (prompt,) = one.visual_prompts
            assert (prompt & one.masks.any(0)).any()
    again = scene_test().exemplars(names, 3, prompt_kinds=("box",))
    assert all(
        one.image.tobytes() == other.image.tobytes()
        for name in names
        for one, other in zip(marked[name], again[name], strict=True)
    )


def test_what_is_asked_by_exemplars_is_read_in_other_images_only():
    test, read = scene_test(), []

    class Reader(Oracle):
        def pool_regions(self, images, image, masks):
            read.append(self.key(images[image]))
            return super().pool_regions(images, image, masks)

        def segment(self, images, *, visual_prompts, **asked):
            for image, prompts in zip(images, visual_prompts, strict=True):
                assert self.key(image) not in read
                assert all(isinstance(prompt, torch.Tensor) and prompt.shape == (2,) for prompt in prompts)
            return super().segment(images, visual_prompts=visual_prompts, **asked)

    figures = evaluate_scenes(Reader(test), test, say=lambda line: None, only=["exemplar"])
    assert figures == pytest.approx({f"exemplar_{n}_box_{name}": 100 for n in (1, 5) for name in ("ap", "ap50")})
    assert read


def test_samples_are_drawn_until_enough_are_wanted():
    test = scene_test()
    every = [sample.conditions[0] for sample in test.samples("refseg")]
    wanted = [sample.conditions[0] for sample in test.samples("refseg", wanted=lambda one: "left" in one.conditions[0])]
    assert len(every) == len(wanted) == 12
    assert all("left" in phrase for phrase in wanted)
    first = [phrase for phrase in every if "left" in phrase]
    assert wanted[: len(first)] == first
    assert test.samples("refseg", wanted=lambda one: False) == []


def test_the_same_seed_gives_the_same_scenes_and_another_gives_others():
    one, again, other = (scene_test(seed=seed).samples("refseg") for seed in (1, 1, 2))
    assert [sample.image.tobytes() for sample in one] == [sample.image.tobytes() for sample in again]
    assert not {sample.image.tobytes() for sample in one} & {sample.image.tobytes() for sample in other}


def test_the_command_writes_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(SceneAssets, "load", lambda folder: SceneAssets.builtin())
    folder, out = save_untrained(tmp_path / "model"), tmp_path / "figures.json"
    main(["--model", str(folder), "--count", "2", "--side", "64", "--json", str(out)])
    shown = capsys.readouterr()
    assert "ov_16_ap50" in shown.out
    assert "asking: 100%" in shown.err
    figures = json.loads(out.read_text())
    assert set(figures) >= {"ov_16_ap50", "ref_ciou", "gcg_ap50", "pan_pq"}
    main(["--model", str(folder), "--count", "2", "--side", "64", "--only", "int,pan", "--json", str(out)])
    some = json.loads(out.read_text())
    assert {name.split("_")[0] for name in some} == {"int", "pan"}
    # A part that runs alone asks the same scenes.
    assert some == pytest.approx({name: figures[name] for name in some}, nan_ok=True)


def test_a_part_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--model", "nowhere", "--only", "ov,captions"])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "captions" in shown
    assert all(part in shown for part in PARTS)
