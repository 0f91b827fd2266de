"""Every recorded value of the reference implementation, from image and text to the result of every task.

With `-s` the table of all comparisons is printed; `XSAM_PARITY_DOC=docs/parity.md` writes its summary there.
"""

import json
import os
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.xsam_model.conftest import GOLDEN_ROOT, golden_folders
from tests.xsam_model.golden_results import compare_result, result_kind
from tests.xsam_model.golden_table import FEATURES, LOGITS, ParityTable, write_document
from xsam_model import XSamImageFeatures
from xsam_model.post_processing.mask_geometry import MaskGeometry

# Recorded with eager attention. Fused attention adds up in another order, and the pixel decoder enlarges that.
FUSED_FEATURES = 1e-4
NO_NETWORK = "no network"


@pytest.fixture(scope="session")
def table():
    table = ParityTable()
    yield table
    print(f"\n{table.listing()}")
    if path := os.environ.get("XSAM_PARITY_DOC"):
        write_document(table, path, golden_folders())


@pytest.fixture
def compare(table, golden, golden_model):
    """compare(case) -> a comparison of that case of the model under test."""
    mode = golden_model.segmentor.encoder.config._attn_implementation
    return lambda case: table.case(golden.folder.name, mode, case)


def cases(golden, *modes):
    return [name for name, case in golden.meta.items() if isinstance(case, dict) and case.get("mode") in modes]


def is_eager(model):
    return model.segmentor.encoder.config._attn_implementation == "eager"


@pytest.fixture
def image_features(golden, golden_model):
    """None in eager mode, which must match from the pixels on. Else what was recorded.

    The decoder attends where the previous mask is positive, so a mask logit close enough to 0 to take another sign in
    another order of additions would change all that follows.
    """
    if is_eager(golden_model):
        return None
    shared = {key.removeprefix("shared."): value for key, value in golden.tensors.items()}
    return XSamImageFeatures(
        vision_tokens=shared["visual_projector.out"],
        segmentor_tokens=shared["seg_projector.out"],
        multi_scale_features=tuple(
            shared[key] for key in sorted(shared) if key.startswith("pixel_decoder.multi_scale")
        ),
        mask_features=shared["pixel_decoder.mask_features"],
    )


@pytest.fixture
def run(golden, golden_model, image_features):
    """run(case) -> output; an answer that the reference generated is given, as if it were part of the text."""

    def forward(name):
        inputs, recorded = golden.inputs(name), golden.task(name)
        if "generate.sequences" in recorded:
            give_answer(inputs, recorded["generate.sequences"][0], golden.processor)
        with torch.no_grad():
            return golden_model(**inputs.for_model(), image_features=image_features, output_hidden_states=True)

    return forward


def give_answer(inputs, answer, processor):
    ids = torch.cat([inputs["input_ids"][0], answer])
    cond_ids, seg_ids = map(torch.from_numpy, processor.token_groups(ids.numpy()))
    inputs.update({"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]})
    inputs.update({"cond_ids": cond_ids[None], "seg_ids": seg_ids[None]})


def capture(module, values, name, take_input=False):
    def keep(_module, args, output):
        values[name] = args[0] if take_input else output

    return module.register_forward_hook(keep)


def test_text_and_image_become_the_recorded_inputs(golden, table):
    def compare(case):
        return table.case(golden.folder.name, NO_NETWORK, case)

    image = golden.processor.image_processor([golden.image])
    with compare("image") as row:
        row.near("in.pixel_values", image["pixel_values"], golden.tensors["shared.in.pixel_values"], FEATURES)
        canvas = golden.tensors["shared.in.extra_pixel_values"]
        row.near("in.extra_pixel_values", image["segmentor_pixel_values"], canvas, FEATURES)
    for name in cases(golden, "tensor", "predict"):
        case, recorded, inputs = golden.meta[name], golden.task(name), golden.inputs(name)
        with compare(name) as row:
            row.same("in.original_size", list(inputs["original_sizes"][0]), case["image_size"])
            row.same("in.scaled_size", list(inputs["scaled_sizes"][0]), case["scaled_size"])
            for key in ("input_ids", "cond_ids", "seg_ids"):
                if f"in.{key}" in recorded:
                    row.same(f"in.{key}", inputs[key], recorded[f"in.{key}"])


def test_image_features_match(golden, golden_model, compare):
    values = {}
    hooks = [
        capture(golden_model.visual_projector, values, "siglip.hidden_-2", take_input=True),
        capture(golden_model.seg_connector, values, "connector"),
        capture(golden_model.segmentor.pixel_decoder.encoder, values, "encoder"),
    ]
    pixels, canvas = (golden.tensors[f"shared.in.{name}"] for name in ("pixel_values", "extra_pixel_values"))
    with torch.no_grad():
        features = golden_model.encode_images(pixels, canvas)
        for hook in hooks:
            hook.remove()
        depth = golden_model.config.mask_encoder_config.num_hidden_layers
        hidden = golden_model.segmentor.encode(canvas, set(range(depth + 1)))
        neck = golden_model.segmentor.encoder.neck(hidden[depth])
    values |= {f"sam.hidden_{index}": value for index, value in hidden.items()}
    values |= {f"sam.hidden_{index - depth - 1}": value for index, value in hidden.items()}
    values |= {f"seg_connector.out.{index}": value for index, value in enumerate(values["connector"])}
    levels = enumerate(features.multi_scale_features)
    values |= {f"pixel_decoder.multi_scale.{index}": value for index, value in levels}
    values["pixel_decoder.encoder_last_hidden_state"] = values["encoder"].last_hidden_state
    values["pixel_decoder.mask_features"] = features.mask_features
    values["sam.neck_last_hidden_state"] = neck
    values["visual_projector.out"], values["seg_projector.out"] = features.vision_tokens, features.segmentor_tokens
    recorded = [key for key in golden.tensors if key.startswith("shared.") and not key.startswith("shared.in.")]
    assert recorded
    with compare("image") as row:
        for key in recorded:
            tolerance = FEATURES if is_eager(golden_model) else FUSED_FEATURES
            row.near(key, values[key.removeprefix("shared.")], golden.tensors[key], tolerance)


def test_every_recorded_step_and_result_of_every_task_matches(golden, golden_model, run, compare):
    for name in cases(golden, "tensor", "predict"):
        recorded = golden.task(name)
        if "class_logits" not in recorded:
            continue  # an answer without exactly one `<SEG>`
        output = run(name)
        steps = known_steps(output, golden_model)
        with compare(name) as row:
            for key, expected in recorded.items():
                if key.startswith(("in.", "vision_sampler.", "generate.")):
                    continue  # given, or the same rows in the order of the sampler
                compare_step(row, key, steps, expected)
            compare_case(row, golden, name, output)


def test_results_are_the_recorded_ones_when_conversations_share_the_image(
    golden, golden_model, image_features, compare
):
    """What is computed once for all conversations about an image changes none of them."""
    num_shared = 0
    for name in cases(golden, "tensor", "predict"):
        recorded = golden.task(name)
        if "class_logits" not in recorded or "generate.sequences" in recorded:
            continue
        inputs = golden.inputs(name)
        with torch.no_grad():
            features = image_features or golden_model.encode_images(
                inputs["pixel_values"], inputs["segmentor_pixel_values"]
            )
            place = int((inputs["input_ids"][0] == golden_model.config.image_token_index).nonzero()[0, 0])
            prefix = golden_model.read_images(features, inputs["input_ids"][0, :place])
            output = golden_model(**inputs.for_model(), image_features=features, image_prefix=prefix)
        num_shared += prefix is not None
        side = golden_model.config.mask_encoder_config.image_size
        masks = F.interpolate(output.mask_logits, (side, side), mode="bilinear")
        with compare(f"{name} shared") as row:
            row.near("class_logits", output.class_logits, recorded["class_logits"], LOGITS)
            if (full := recorded.get("mask_logits_fullres")) is not None:
                row.near("mask_logits_fullres", masks[:, : full.shape[1]], full, LOGITS)
            compare_case(row, golden, name, output)
    assert num_shared


def known_steps(output, model):
    """Our values by the names of the recordings, and the tolerance each must meet."""
    with torch.no_grad():
        projected = model.llm_projector(output.language_hidden_state)
    side = model.config.mask_encoder_config.image_size
    steps = {
        "mm.inputs_embeds": (output.inputs_embeds, FEATURES),
        "mm.vprompt_feats_in_prompt_order.0": (regions(output), FEATURES),
        "mm.cond_ids": (output.sequence_cond_ids, 0),
        "mm.seg_ids": (output.sequence_seg_ids, 0),
        "llm.final_norm_out": (output.language_hidden_state, FEATURES),
        "llm_projector.out": (projected, FEATURES),
        "segmentor.in.cond_embeddings": (output.condition_embeddings[output.conversation_indices], FEATURES),
        "segmentor.in.seg_embeddings": (output.seg_embeddings[:, None], FEATURES),
        "segmentor.in.embed_masks": (output.condition_mask.float(), 0),
        "class_logits": (output.class_logits, LOGITS),
        "mask_logits_fullres": (F.interpolate(output.mask_logits, (side, side), mode="bilinear"), LOGITS),
    }
    for index, hidden in enumerate(output.decoder_hidden_states):
        steps[f"decoder.layer_hidden.{index}"] = (hidden, FEATURES)
    for index, logits in enumerate(output.decoder_mask_logits):
        steps[f"decoder.mask_logits_lowres.{index}"] = (logits, LOGITS)
    return steps


def compare_step(row, key, steps, expected):
    actual, tolerance = steps[key]
    if key.startswith(("mm.", "llm")):
        # What came before an answer that was generated, or before its last token, is recorded without what follows.
        actual = actual[:, : expected.shape[1]] if actual.ndim == expected.ndim else actual
    if key == "mask_logits_fullres":
        actual = actual[:, : expected.shape[1]]
    if tolerance:
        row.near(key, actual, expected, tolerance)
    else:
        row.same(key, actual, expected)


def regions(output):
    """Embeddings at the middle of every condition: where the region of `<p><region></p>` is."""
    positions = (output.sequence_cond_ids[0] >= 0).nonzero()[:, 0][1::3]
    return output.inputs_embeds[0, positions]


def compare_case(row, golden, name, output):
    case = golden.meta[name]
    if not case.get("results"):
        return
    (expected,), options = case["results"], case["postprocess"]
    geometry = golden.processor.geometry(case["scaled_size"], case["image_size"])
    prompts = golden.task(name).get("in.vprompt_masks")
    compare_result(
        row,
        result_kind(options["fn"], options.get("task_name", "")),
        expected,
        (output.class_logits[0], output.mask_logits[0]),
        geometry,
        threshold=options.get("threshold", 0.0),
        stuff=case["stuff_contiguous_ids"],
        prompt=None if prompts is None else geometry.restore_mask(prompts[0]),
    )


def test_several_seg_tokens_in_one_conversation_are_decoded_apart(golden, golden_model, image_features, compare):
    path = golden.folder / "refseg_two_turns.safetensors"
    if not path.exists():
        pytest.skip("not recorded for this model")
    recorded = load_file(path)
    ids = recorded["in.input_ids"].reshape(-1)
    cond_ids, seg_ids = map(torch.from_numpy, golden.processor.token_groups(ids.numpy()))
    with torch.no_grad():
        output = golden_model(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            cond_ids=cond_ids[None],
            seg_ids=seg_ids[None],
            pixel_values=golden.tensors["shared.in.pixel_values"],
            segmentor_pixel_values=golden.tensors["shared.in.extra_pixel_values"],
            image_features=image_features,
            output_hidden_states=True,
        )
    assert output.image_indices.tolist() == [0] * len(output.seg_embeddings)
    steps = known_steps(output, golden_model)
    with compare("refseg_two_turns") as row:
        if text := invariances(golden.folder).get("two_turn_text"):
            found = golden.processor([golden.image], task="refseg", text=text)["input_ids"][0]
            row.same("in.input_ids", found, ids)
        for key, expected in recorded.items():
            if not key.startswith("in."):
                compare_step(row, key, steps, expected)


def invariances(folder):
    path = folder.parent / "reference_invariances.json"
    return json.loads(path.read_text()).get(folder.name, {}) if path.exists() else {}


SYNTHETIC = GOLDEN_ROOT / "C_postprocess"
RESULTS = json.loads((SYNTHETIC / "expected.json").read_text())


def synthetic(recorded, tensors, classes="class_logits"):
    """Recorded logits, at the size of the canvas, and where the image lies on it."""
    masks = tensors["mask_logits_fullres"][0]
    geometry = MaskGeometry(
        canvas_size=masks.shape[-1],
        scaled_size=tuple(recorded["scaled_size"]),
        original_size=tuple(recorded["image_size"]),
    )
    # The first of the two resizes has nothing to do.
    assert torch.equal(
        geometry.enlarge_to_canvas(masks), masks[:, : geometry.scaled_size[0], : geometry.scaled_size[1]]
    )
    return (tensors[classes][0], masks), geometry


@pytest.mark.parametrize("name", RESULTS["results"])
def test_recorded_logits_give_the_recorded_result(name, table):
    task, threshold = re.fullmatch(r"(\w+?)(?:_t([\d.]+))?(?:_nofuse)?", name).groups()
    kinds = {"refseg": "phrase", "gcgseg": "caption", "vgdseg": "regions", "intseg": "interactive"}
    tensors = load_file(SYNTHETIC / "tensors.safetensors")
    one = "class_logits_1cond" if task in ("refseg", "intseg") else "class_logits"
    logits, geometry = synthetic(RESULTS, tensors, one)
    (expected,) = RESULTS["results"][name]
    if task == "vgdseg":
        contiguous = RESULTS["vgd_dataset_id_to_contiguous_id"]
        assert [contiguous[str(label)] for label in RESULTS["vgd_sampled_labels"]] == expected["sampled_labels"]
    with table.case(SYNTHETIC.name, NO_NETWORK, name) as row:
        compare_result(
            row,
            kinds.get(task, task),
            expected,
            logits,
            geometry,
            threshold=float(threshold or 0),
            stuff=None if name.endswith("nofuse") else RESULTS["stuff_contiguous_ids"],
            prompt=geometry.restore_mask(tensors["vprompt_masks"][0]),
        )


def test_recorded_logits_give_the_recorded_id_collision(table):
    recorded = json.loads((SYNTHETIC / "panoptic_id_collision.json").read_text())
    logits, geometry = synthetic(recorded, load_file(SYNTHETIC / "panoptic_id_collision.safetensors"))
    (expected,) = recorded["results"]
    ids = [row["id"] for row in expected["segments_info"]]
    assert len(set(ids)) < len(ids)
    with table.case(SYNTHETIC.name, NO_NETWORK, "panoptic_id_collision") as row:
        options = {"threshold": recorded["threshold"], "stuff": recorded["stuff_contiguous_ids"]}
        compare_result(row, "panoptic", expected, logits, geometry, **options)
