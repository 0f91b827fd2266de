import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from rectangles import NAMES, Rectangles

from xsam_model.losses.losses import IGNORED_TOKEN
from xsam_model.prompts.templates import ANSWERS, QUESTIONS
from xsam_model.training.samples.batches import BatchBuilder
from xsam_model.training.samples.loading import Share, StageBatches
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.sources import BatchPlan, balanced_sizes
from xsam_model.training.samples.variation import Variation, choose_prompts, vary_categories
from xsam_model.training.samples.wordings import answers, questions

FIXED = Variation(all_categories_share=1.0, borrowed_prompts_share=0.0, fixed_wording_share=1.0)


def answers_of(batch, processor):
    """The labeled tokens of each conversation as text."""
    return [processor.tokenizer.decode(row[row != IGNORED_TOKEN]) for row in batch.token_labels]


@pytest.mark.parametrize("task", ["ovseg", "vgdseg", "intseg", "refseg", "reaseg", "gcgseg", "chat"])
def test_only_answers_are_learned(build, processor, task):
    batch = build(task, variation=FIXED)
    said = answers_of(batch, processor)
    expected = ANSWERS.get(task)
    for text in said:
        assert text.endswith("<|end|>")
        assert expected is None or text == f"{expected}<|end|>"
    assert all(("<SEG>" in text) == (task != "chat") for text in said)
    if task == "chat":
        assert all(text.startswith("It shows a") for text in said)
    # Where the loss looks, the labels are the inputs.
    labeled = batch.token_labels != IGNORED_TOKEN
    assert torch.equal(batch.token_labels[labeled], batch.inputs["input_ids"][labeled])


def test_categories_are_shuffled_with_their_labels(build, processor):
    batch = build("ovseg", count=4, variation=replace(FIXED, all_categories_share=0.5))
    texts = processor.tokenizer.batch_decode(batch.inputs["input_ids"].clamp(min=0))
    asked = [[part.split("</p>")[0] for part in text.split("<p>")[1:]] for text in texts]
    assert len({tuple(names) for names in asked}) > 1
    truth = [NAMES[index] for index in batch.class_ids.tolist()]
    labeled = [asked[d][k] for d, k in zip(batch.targets.decodes.tolist(), batch.targets.labels.tolist(), strict=True)]
    assert labeled == truth


def test_absent_categories_are_left_out_at_random():
    sample = Rectangles("ovseg").draw(0, np.random.default_rng(0))
    variation = Variation(all_categories_share=0.5)
    counts = [len(vary_categories(sample, variation, np.random.default_rng(i)).conditions) for i in range(200)]
    assert set(counts) == {2, 3, 4}
    # Half of them have all four, and a third of the other half.
    assert 0.55 < counts.count(4) / 200 < 0.8
    few = vary_categories(sample, Variation(max_categories=1), np.random.default_rng(0))
    assert len(few.conditions) == 1
    assert len(few.masks) == len(few.labels) == 1


def test_prompts_are_borrowed_from_other_images_of_other_categories(build):
    always = replace(FIXED, borrowed_prompts_share=1.0)
    batch = build("vgdseg", count=6, variation=always)
    images = batch.inputs["region_images"]
    counts = (batch.inputs["input_ids"] == -300).sum(1)
    own = torch.repeat_interleave(torch.arange(6), counts)
    assert (images != own).any()
    assert ((images == own).long().new_zeros(6).index_add_(0, own, (images == own).long()) == 2).all()
    # True masks belong to own prompts.
    first = counts.cumsum(0) - counts
    assert torch.equal(images[first[batch.targets.decodes] + batch.targets.labels], batch.targets.decodes)


def test_exemplars_are_prompts_of_other_images_that_show_the_same_category(build):
    always = replace(FIXED, exemplars_share=1.0)
    batch, plain = (build("vgdseg", count=6, variation=one) for one in (always, FIXED))
    assert torch.equal(plain.inputs["region_images"], torch.repeat_interleave(torch.arange(6), 2))
    images = batch.inputs["region_images"]
    # Of four categories six pictures show two each, so every one is shown by another picture too.
    samples = [Rectangles("vgdseg").draw(place, np.random.default_rng([0, place])) for place in range(6)]
    names = [name for sample in samples for name in sample.conditions]
    assert min(names.count(name) for name in names) > 1
    assert (images != plain.inputs["region_images"]).all()
    # The truth stays that of the picture that is asked.
    assert torch.equal(batch.targets.decodes, plain.targets.decodes)
    assert torch.equal(batch.targets.masks, plain.targets.masks)


def test_an_exemplar_shows_the_category_of_the_prompt_that_it_replaces():
    samples = [Rectangles("vgdseg").draw(place, np.random.default_rng([0, place])) for place in range(6)]
    variation = replace(FIXED, exemplars_share=1.0)
    for place, sample in enumerate(samples):
        prompts, moved = choose_prompts(samples, place, variation, np.random.default_rng(place))
        shown = [samples[prompt.sample].conditions[prompt.prompt] for prompt in prompts]
        assert [shown[at] for at in moved] == list(sample.conditions)


def test_a_negative_without_a_lender_is_a_zero_vector(build, model):
    batch = build("vgdseg", count=1, variation=replace(FIXED, borrowed_prompts_share=1.0))
    images = batch.inputs["region_images"]
    assert (images == -1).any()
    with torch.no_grad():
        output = model(**batch.inputs, output_hidden_states=True)
    groups = output.sequence_cond_ids[0]
    regions = [output.inputs_embeds[0, groups == number][1] for number in range(len(images))]
    for image, region in zip(images.tolist(), regions, strict=True):
        assert (region.abs().sum() == 0) == (image == -1)


def test_borrowed_regions_are_read_in_the_other_image(build, model):
    batch = build("vgdseg", count=2, variation=FIXED)
    swapped = {**batch.inputs, "region_images": 1 - batch.inputs["region_images"]}
    with torch.no_grad():
        own, other = (model(**inputs).condition_embeddings for inputs in (batch.inputs, swapped))
        default = model(**{k: v for k, v in batch.inputs.items() if k != "region_images"}).condition_embeddings
    assert torch.equal(own, default)
    assert (own[:, :2] - other[:, :2]).abs().max() > 1e-4


def test_phrases_are_asked_one_by_one_and_are_each_others_negatives(build):
    batch = build("refseg", count=3, variation=FIXED)
    assert batch.inputs["image_indices"].tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(batch.targets.labels, batch.targets.decodes)
    shared = batch.shared_columns
    assert shared.shape == (6, 6)
    assert shared.diagonal().all()
    texts = [
        condition
        for place in range(3)
        for condition in Rectangles("refseg").draw(place, np.random.default_rng([0, place])).conditions
    ]
    for one in range(6):
        for other in range(6):
            assert shared[one, other].item() == (one == other or texts[one] != texts[other])
    alone = build("refseg", count=3, variation=replace(FIXED, shared_phrases=False))
    assert alone.shared_columns is None
    assert (alone.targets.labels == 0).all()


def test_true_masks_follow_the_canvas(build, processor):
    batch = build("ovseg", source=Rectangles("ovseg", side=96))
    sample = Rectangles("ovseg", side=96).draw(0, np.random.default_rng([0, 0]))
    assert batch.targets.masks.shape[1:] == (64, 64)
    expected = processor.image_processor.scale_mask(sample.masks[0])
    assert (batch.targets.masks[0].numpy() == expected).all()


def test_a_batch_has_one_task(processor):
    samples = [Rectangles(task).draw(0, np.random.default_rng(0)) for task in ("ovseg", "refseg")]
    with pytest.raises(ValueError, match="mixes tasks"):
        BatchBuilder(processor=processor).build(samples, [np.random.default_rng(0)] * 2)


def test_empty_masks_and_ignored_pixels(processor):
    sample = Rectangles("ovseg").draw(0, np.random.default_rng(0))
    masks = np.stack([sample.masks[0], np.zeros_like(sample.masks[0])])
    ignore = np.zeros((64, 64), dtype=np.bool_)
    ignore[:8] = True
    given = replace(sample, masks=masks, ignore=ignore)
    batch = BatchBuilder(processor=processor, variation=FIXED).build([given], [np.random.default_rng(0)])
    assert len(batch.targets.masks) == 1
    assert torch.equal(batch.targets.valid[0], ~torch.from_numpy(ignore))


def test_the_closed_stage_needs_known_classes(build, processor):
    batch = build("ovseg", closed=True)
    assert set(batch.inputs) == {"segmentor_pixel_values"}
    assert torch.equal(batch.targets.labels, batch.class_ids)
    sample = Rectangles("ovseg").draw(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="without one of the 1 classes"):
        BatchBuilder(processor=processor, classes=("cat",), closed=True).build([sample], [np.random.default_rng(0)])


def test_every_wording_fits_its_task():
    for task in QUESTIONS:
        assert questions(task, ["Why?"])[0] == QUESTIONS[task]
        assert all(("{}" in text) == (task != "gcgseg") for text in questions(task, ["x"]))
    assert answers("chat") == ()
    for task, fixed in ANSWERS.items():
        assert answers(task)[0] == fixed
        assert all(text.count("<SEG>") == 1 for text in answers(task))
        assert len(set(answers(task))) == len(answers(task)) > 1


def test_small_sources_are_repeated():
    # Shares 0.9 and 0.025: the second is repeated sqrt(0.1 / 0.025) = 2 times, the first never.
    assert balanced_sizes([975, 25], threshold=0.1) == [975, 50]
    assert balanced_sizes([975, 25], threshold=0) == [975, 25]
    plan = BatchPlan([975, 25], batch_size=5, seed=3)
    assert plan.batches_per_epoch == 195 + 10
    drawn = [plan.at(step) for step in range(205)]
    sources = np.array([source for source, _ in drawn])
    assert (sources == 0).sum() == 195
    assert (sources[:100] == 1).any()
    small = np.concatenate([indices for source, indices in drawn if source == 1])
    large = np.concatenate([indices for source, indices in drawn if source == 0])
    assert (np.bincount(small, minlength=25) == 2).all()
    assert (np.bincount(large, minlength=975) == 1).all()


def test_epochs_differ_and_repeat_exactly():
    plan = BatchPlan([40], batch_size=4, seed=1)
    first, second = ([plan.at(step)[1].tolist() for step in range(10 * epoch, 10 * epoch + 10)] for epoch in (0, 1))
    assert first != second
    copy = pickle.loads(pickle.dumps(plan))
    assert [copy.at(step)[1].tolist() for step in range(10)] == first


def test_a_source_smaller_than_a_batch():
    source, indices = BatchPlan([3], batch_size=8).at(0)
    assert source == 0
    assert sorted(set(indices.tolist())) == [0, 1, 2]


def _batches(processor, share=None, workers=0, first=0):
    sources = [Rectangles("ovseg", size=16), Rectangles("vgdseg", size=16)]
    plan = BatchPlan([16, 16], batch_size=4)
    builder = BatchBuilder(processor=processor, classes=NAMES)
    stage = StageBatches(sources, builder, plan, share or Share(batch_size=4), [0, 0])
    return list(stage.iterate(first, 6, workers))


def test_batches_do_not_depend_on_workers_and_come_from_one_source(processor):
    plain, worked, later = _batches(processor), _batches(processor, workers=2), _batches(processor, first=4)
    assert {batch.source for batch in plain} == {"ovseg", "vgdseg"}
    assert [batch.keys for batch in plain] == [batch.keys for batch in worked]
    assert [batch.keys for batch in plain[4:]] == [batch.keys for batch in later]
    for one, other in zip(plain, worked, strict=True):
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        assert torch.equal(one.inputs["segmentor_pixel_values"], other.inputs["segmentor_pixel_values"])
        assert torch.equal(one.targets.masks, other.targets.masks)


def test_processes_and_passes_share_each_batch(processor):
    whole = _batches(processor)
    parts = [_batches(processor, Share(batch_size=4, num_processes=2, process=number)) for number in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        both = torch.cat([part.inputs["segmentor_pixel_values"] for part in shares])
        assert torch.equal(batch.inputs["segmentor_pixel_values"], both)
    with pytest.raises(ValueError, match="cannot be divided"):
        Share(batch_size=4, num_processes=3)


def test_samples_that_cannot_be_trained_on():
    image, masks = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((1, 8, 8), dtype=np.bool_)
    with pytest.raises(ValueError, match="labels must be in"):
        TrainingSample(image=image, task="ovseg", conditions=("a",), masks=masks, labels=np.array([1]))
    with pytest.raises(ValueError, match="labels of shape"):
        TrainingSample(image=image, task="ovseg", conditions=("a",), masks=masks)
    with pytest.raises(ValueError, match="no fixed answer"):
        TrainingSample(image=image, task="gcgseg", masks=masks[:0])
    with pytest.raises(ValueError, match="at least one pixel"):
        TrainingSample(image=image, task="vgdseg", visual_prompts=(masks[0],), masks=masks[:0])
