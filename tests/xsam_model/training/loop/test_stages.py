import pytest
import torch
from rectangles import NAMES

from xsam_model import XSamConfig, XSamForSegmentation
from xsam_model.losses.point_sampling import PointSampling
from xsam_model.losses.targets import LossWeights
from xsam_model.training.loop.network import CLOSED_KINDS, XSamTraining, splice_labels
from xsam_model.training.loop.stages import parameter_groups, published, read_stage, select_parameters
from xsam_model.training.samples.variation import Variation

FIXED = Variation(all_categories_share=1.0, borrowed_prompts_share=0.0, fixed_wording_share=1.0)
SAMPLING = PointSampling(num_points=256)


def network_of(model, kind, dense=0.0):
    network = XSamTraining(model, kind, len(NAMES), weights=LossWeights(dense=dense), sampling=SAMPLING).train()
    select_parameters(network, {})
    return network


def reached(network, batch):
    """Names of the parameters that get a gradient, and of those that are to learn."""
    network.zero_grad()
    sum(network(batch).values()).backward()
    got = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    return got, {name for name, p in network.named_parameters() if p.requires_grad}


def parts(names):
    """Module names, down to the parts of the segmentor."""
    found = {".".join(name.split(".")[1:3] if "segmentor" in name else name.split(".")[1:2]) for name in names}
    return found - {""} | {name.split(".")[0] for name in names if not name.startswith("model.")}


def test_the_segmentor_stage_trains_the_segmentor(model, build):
    got, learning = reached(network_of(model, "segmentor", dense=1.0), build("ovseg", closed=True))
    expected = {"segmentor.encoder", "segmentor.pixel_decoder", "segmentor.decoder", "seg_connector"}
    assert parts(learning) - {"weight", "bias"} == expected | {"class_predictor", "dense_predictor"}
    silent = {name for name in learning - got if not name.endswith("k_proj.bias")}
    # A mask's place in the image is all that these see, and the bias of keys changes no attention.
    assert all("rel_pos" in name or "in_proj_bias" in name or "sampling_offsets" in name for name in silent), silent


def test_the_encoder_stage_trains_the_mask_encoder(model, build):
    network = network_of(model, "encoder")
    got, learning = reached(network, build("ovseg", closed=True))
    assert parts(learning) - {"0", "1"} == {"segmentor.encoder", "token_predictor"}
    assert not any("neck" in name for name in learning)
    assert learning == got


def test_the_encoder_learns_what_share_of_a_token_each_class_has(model, build):
    network = network_of(model, "encoder")
    batch = build("ovseg", count=1, closed=True)
    with torch.no_grad():
        network.token_predictor[1].weight.zero_()
        network.token_predictor[1].bias.copy_(torch.arange(5.0))
    size, tokens = batch.targets.masks.shape[-1], 8
    masks = batch.targets.masks.unflatten(2, (tokens, size // tokens)).unflatten(1, (tokens, size // tokens))
    shares = masks.float().mean((2, 4))
    entropy = -torch.arange(5.0).log_softmax(0)
    shown = sum(float(share.sum() * entropy[name]) for share, name in zip(shares, batch.class_ids, strict=True))
    empty = float(tokens**2 - shares.sum())
    expected = (shown + 0.1 * empty * float(entropy[4])) / (float(shares.sum()) + 0.1 * empty)
    assert float(network(batch)["tokens"]) == pytest.approx(expected, rel=1e-5)


def test_the_alignment_stage_trains_two_projectors(model, build):
    got, learning = reached(network_of(model, "alignment"), build("chat"))
    assert got == learning
    assert parts(got) == {"visual_projector", "seg_projector"}


def test_the_mixed_stage_trains_all_that_is_used(model, build):
    network = network_of(model, "mixed", dense=1.0)
    got, learning = reached(network, build("ovseg"))
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert all(
        "neck" in n or "head" in n or "post_layernorm" in n or "encoder.layers.1" in n or "shared_image" in n
        for n in frozen
    ), frozen
    wanted = {
        "visual_encoder",
        "llm",
        "visual_projector",
        "seg_projector",
        "llm_projector",
        "seg_connector",
        "bg_embeds",
    }
    assert wanted <= parts(got)
    assert "model.segmentor.logit_scale" in got
    assert parts(got) == parts(learning)


def test_chat_has_no_segmentation_loss(model, build):
    network = network_of(model, "mixed")
    assert set(network(build("chat"))) == {"language"}
    assert set(network(build("refseg"))) == {"language", "classes", "mask", "dice"}


TRUNK = {"model_type": "xsam_trunk", "image_size": 64, "stem_channels": 8, "channels": [8, 12, 16, 24, 32]}
TRUNK |= {"depths": [1, 1, 1, 1, 1], "kernel_sizes": [3] * 5, "strides": [1, 2, 2, 2, 2], "expansions": [2] * 5}


@pytest.fixture(scope="module")
def trunk_model(config):
    fields = {**config.to_dict(), "mask_encoder_config": TRUNK, "mask_encoder_select_layer": 4, "token_downsample": 1}
    levels = {"select_layers": [2, 3, 4, 5], "connector_scale_factors": [1] * 4, "num_feature_levels": 4}
    fields["segmentor_config"] = {**fields["segmentor_config"], **levels}
    torch.manual_seed(0)
    return XSamForSegmentation(XSamConfig(**fields))


@pytest.mark.parametrize(
    ("kind", "task"), [("encoder", "ovseg"), ("segmentor", "ovseg"), ("alignment", "chat"), ("mixed", "intseg")]
)
def test_every_stage_trains_a_convolutional_trunk(trunk_model, build, kind, task):
    network = network_of(trunk_model, kind)
    got, learning = reached(network, build(task, count=2, closed=kind in CLOSED_KINDS))
    encoder = {name for name in learning if name.startswith("model.segmentor.encoder.")}
    assert encoder <= got
    assert bool(encoder) == (kind != "alignment")
    assert ("model.segmentor.encoder.token_positions" in encoder) == (kind == "mixed")


def test_parameters_whose_factor_is_0_are_frozen(trunk_model, build):
    network = network_of(trunk_model, "mixed")
    select_parameters(network, {"segmentor.encoder": 0.0, "segmentor.encoder.token_positions": 1.0})
    got, learning = reached(network, build("intseg", count=2))
    name = "model.segmentor.encoder.token_positions"
    assert {one for one in learning if one.startswith("model.segmentor.encoder.")} == {name}
    assert name in got
    assert not any(one.startswith("model.segmentor.encoder.s") for one in got)


@pytest.mark.parametrize("task", ["ovseg", "vgdseg", "intseg", "refseg", "reaseg", "gcgseg"])
def test_every_task_has_finite_losses(model, build, task):
    losses = network_of(model, "mixed", dense=1.0)(build(task, count=3))
    assert all(torch.isfinite(loss) for loss in losses.values())


def learn(network, batch, steps, learning_rate=4e-3):
    """Return the loss before and after."""
    select_parameters(network, {})
    optimizer = torch.optim.AdamW(parameter_groups(network, published(network.kind, steps)), learning_rate, fused=True)
    losses = []
    for _ in range(steps):
        total = sum(network(batch).values())
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return losses[0], losses[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task"), [("encoder", "ovseg"), ("segmentor", "ovseg"), ("mixed", "ovseg"), ("mixed", "refseg")]
)
def test_one_batch_is_learned_by_heart(model, build, kind, task):
    batch = build(task, closed=kind in CLOSED_KINDS, variation=FIXED)
    steps, learning_rate = (60, 2e-3) if kind == "mixed" else (100, 4e-3)
    first, last = learn(network_of(model, kind), batch, steps, learning_rate)
    assert last < 0.15 * first


@pytest.mark.slow
def test_the_alignment_stage_learns_for_a_language_model_that_speaks(model, build):
    batch = build("chat", count=4, variation=FIXED)
    learn(network_of(model, "mixed"), batch, 60)
    with torch.no_grad():
        for projector in (model.visual_projector, model.seg_projector):
            for parameter in projector.parameters():
                parameter.normal_(std=0.05)
    first, last = learn(network_of(model, "alignment"), batch, 20)
    assert last < 0.1 * first
    assert last < 0.05


def test_checkpointed_activations_give_the_same_gradients(model, build):
    network, batch = network_of(model, "mixed"), build("ovseg")
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        network.zero_grad()
        sum(network(batch).values()).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_learning_rates_and_weight_decay(model):
    network = network_of(model, "mixed")
    groups = parameter_groups(network, published("mixed", 10))
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in network.parameters())
    of = {id(p): (group["factor"], group["weight_decay"]) for group in groups for p in group["params"]}

    def settings(name):
        return of[id(model.get_parameter(name))]

    assert settings("segmentor.encoder.layers.0.mlp.lin1.weight") == (0.1, 0.05)
    assert settings("visual_encoder.embeddings.patch_embedding.bias") == (0.1, 0.0)
    assert settings("segmentor.encoder.pos_embed") == (0.1, 0.0)
    assert settings("segmentor.encoder.layers.1.attn.rel_pos_h") == (0.1, 0.0)
    assert settings("llm.model.embed_tokens.weight") == (1.0, 0.0)
    assert settings("llm.model.norm.weight") == (1.0, 0.0)
    assert settings("llm.lm_head.weight") == (1.0, 0.05)
    assert settings("segmentor.decoder.queries_features.weight") == (1.0, 0.0)
    assert settings("segmentor.pixel_decoder.level_embed") == (1.0, 0.0)
    assert settings("segmentor.logit_scale") == (1.0, 0.0)


def test_schedules():
    cosine = published("mixed", 100)
    assert cosine.learning_rate_at(0) == pytest.approx(1 / 3)
    assert cosine.learning_rate_at(2) == cosine.learning_rate_at(3) == 1
    assert cosine.learning_rate_at(99) < 0.001
    steps = published("segmentor", 36)
    assert [round(steps.learning_rate_at(step), 4) for step in (23, 24, 29, 30, 35)] == [1, 0.1, 0.1, 0.01, 0.01]


def test_stages_are_read_over_the_published_ones():
    stage = read_stage(
        {"kind": "alignment", "steps": 5, "batch_size": 8, "weights": {"dense": 6.0}, "betas": [0.9, 0.98]}
    )
    assert (stage.accumulation, stage.learning_rate, stage.weight_decay) == (4, 1e-3, 0.0)
    assert (stage.batch_size, stage.weights.dense, stage.weights.mask, stage.betas) == (8, 6.0, 5.0, (0.9, 0.98))
    for wrong in (
        {"steps": 5},
        {"kind": "mixed", "steps": 0},
        {"kind": "mixed", "steps": 5, "speed": 9},
        {"kind": "x", "steps": 1},
    ):
        with pytest.raises(ValueError, match=r"stage|steps|speed"):
            read_stage(wrong)


def test_labels_move_with_the_image():
    labels = torch.tensor([[-100, -100, 5, 6], [-100, -100, -100, 7]])
    ids = torch.tensor([[1, -200, 5, 6], [1, 2, -200, 7]])
    moved = splice_labels(labels, ids, -200, 3)
    assert moved.tolist() == [[-100, -100, -100, -100, 5, 6], [-100, -100, -100, -100, -100, 7]]
