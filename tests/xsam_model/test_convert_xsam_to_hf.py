"""The released checkpoint becomes a folder that loads; what does not fit is refused before anything is written."""

import hashlib
import io
import json
import os
import pickle
import runpy
import shutil
import signal
import sys
import time
import zipfile
from collections import OrderedDict
from contextlib import redirect_stderr
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor, Qwen3Config

from tests.support.fork_server import fork_server
from xsam_model import XSamConfig, XSamForSegmentation, XSamProcessor
from xsam_model.conversion import weight_files
from xsam_model.conversion.base_models import read_base_models
from xsam_model.conversion.checkpoint_keys import ExpectedTensors
from xsam_model.convert_xsam_to_hf import from_hf, main, to_hf

GOLDEN = Path(__file__).parents[1] / "golden" / "A"
BASE_ARGUMENTS = ("--text-model", "--vision-model", "--mask-encoder")
EMBEDDINGS = "llm.model.embed_tokens.weight"
VOCABULARY = (EMBEDDINGS, "llm.lm_head.weight")


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "weights.safetensors")


@pytest.fixture(scope="module")
def processes():
    with fork_server("xsam_model.convert_xsam_to_hf") as server:
        yield server


@pytest.fixture
def bases(tmp_path, golden_bases):
    """Arguments that name base folders of this test's own: bases["--text-model"] is a path."""
    shutil.copytree(golden_bases, tmp_path / "bases")
    folders = {"--text-model": "text", "--vision-model": "vision", "--mask-encoder": "mask", "--config": "xsam.json"}
    return {name: tmp_path / "bases" / folder for name, folder in folders.items()}


@pytest.fixture
def convert(tmp_path, bases, capsys):
    """convert(checkpoint, *arguments) -> (exit code, what was printed, output folder)."""

    def run(checkpoint, *arguments, output="out"):
        named = [word for pair in bases.items() for word in map(str, pair)]
        code = main(["--checkpoint", str(checkpoint), *named, "--output", str(tmp_path / output), *arguments])
        printed = capsys.readouterr()
        return code, printed.out + printed.err, tmp_path / output

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """refused(checkpoint, *arguments) -> the message, after checking that nothing was left behind."""

    def run(checkpoint, *arguments):
        before = sorted(tmp_path.rglob("*"))
        code, message, output = convert(checkpoint, *arguments)
        assert code == 2
        assert message.startswith("error: ")
        assert "Traceback" not in message
        assert not output.exists()
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return run


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def edit_json(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def overrides_of(bases):
    return json.loads(bases["--config"].read_text())


def logits(folder, golden, dtype=torch.float32):
    model = XSamForSegmentation.from_pretrained(folder, dtype=dtype).eval()
    inputs = XSamProcessor.from_pretrained(folder)([golden], conditions=[["person", "traffic light"]])
    with torch.no_grad():
        output = model(**inputs.for_model())
    return output.class_logits, output.mask_logits


def stored(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.fixture
def photo(picture):
    return picture(90, 120)


def test_command_writes_a_folder_with_the_logits_of_the_weights_that_went_in(
    tmp_path, bases, weights, photo, processes
):
    named = [word for pair in bases.items() for word in map(str, pair)]
    output = tmp_path / "new" / "folder"
    checkpoint = ["--checkpoint", str(GOLDEN / "weights.safetensors")]
    process = processes.Process(target=_run_command, args=([*checkpoint, *named, "--output", str(output)],))
    process.start()
    process.join()
    assert process.exitcode == 0
    model = XSamForSegmentation(XSamConfig.from_pretrained(output)).eval()
    model.load_state_dict(to_hf(weights))
    model.save_pretrained(tmp_path / "direct")
    XSamProcessor.from_pretrained(output).save_pretrained(tmp_path / "direct")
    for ours, direct in zip(logits(output, photo), logits(tmp_path / "direct", photo), strict=True):
        assert torch.equal(ours, direct)
    assert (output / "model.safetensors").stat().st_mode == (output / "config.json").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bases", "direct", "new"]


def test_auto_classes_load_the_folder(convert):
    _, _, output = convert(GOLDEN / "weights.safetensors")
    assert isinstance(AutoConfig.from_pretrained(output), XSamConfig)
    assert isinstance(AutoModel.from_pretrained(output), XSamForSegmentation)
    processor = AutoProcessor.from_pretrained(output)
    assert processor.tokenizer.convert_tokens_to_ids(["<SEG>", "<p>", "</p>"]) == [425, 426, 427]
    assert processor.max_text_length == AutoConfig.from_pretrained(output).max_text_length
    assert processor.chat_format == "phi3"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("form", ["flat", "nested", "legacy", "parameters", "safetensors"])
def test_every_form_and_type_of_checkpoint_is_read_as_it_is(form, dtype, convert, weights, tmp_path):
    typed = {name: value.to(dtype) for name, value in weights.items()}
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(typed, path)
    elif form == "parameters":
        save(path, OrderedDict((name, torch.nn.Parameter(value)) for name, value in typed.items()))
    else:
        content = {"state_dict": typed, "epoch": 3} if form == "nested" else OrderedDict(typed)
        save(path, content, _use_new_zipfile_serialization=form != "legacy")
    code, message, output = convert(path)
    assert code == 0, message
    written = stored(output)
    assert written.keys() == to_hf(typed).keys()
    assert all(torch.equal(written[name], value) for name, value in to_hf(typed).items())
    assert AutoConfig.from_pretrained(output).dtype == dtype
    assert AutoConfig.from_pretrained(output).text_config.dtype == dtype
    assert AutoModel.from_pretrained(output).dtype == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_cast_except_what_is_computed_in_float32(dtype, convert, weights):
    _, message, output = convert(GOLDEN / "weights.safetensors", "--dtype", dtype)
    written = stored(output)
    kept = {name for name, value in written.items() if value.dtype == torch.float32}
    assert kept == {name for name in written if name.startswith("segmentor.pixel_decoder.")}
    half = getattr(torch, dtype)
    assert all(
        torch.equal(written[name], value if name in kept else value.to(half)) for name, value in to_hf(weights).items()
    )
    assert message.strip().endswith(dtype)
    assert AutoModel.from_pretrained(output).dtype == half


def test_values_too_large_for_the_new_type_are_refused(refused, weights, tmp_path):
    weights = {**weights, "bg_embeds.weight": torch.full_like(weights["bg_embeds.weight"], 1e6)}
    path = save(tmp_path / "large.bin", weights)
    assert "bg_embeds.weight holds values too large for torch.float16" in refused(path, "--dtype", "float16")


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_no_numbers_are_refused(value, refused, weights, tmp_path):
    spoiled = weights["bg_embeds.weight"].clone()
    spoiled[0, 3] = value
    path = save(tmp_path / "spoiled.bin", {**weights, "bg_embeds.weight": spoiled})
    assert "bg_embeds.weight holds NaN or infinite values" in refused(path)


def test_weights_are_sharded_with_an_index_that_loads(convert, weights, photo):
    _, _, whole = convert(GOLDEN / "weights.safetensors", output="whole")
    _, _, sharded = convert(GOLDEN / "weights.safetensors", "--max-shard-size", "300KB", output="sharded")
    shards = sorted(sharded.glob("model-*-of-*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert len(shards) > 3
    assert max(shard.stat().st_size for shard in shards) < 320_000
    assert {shard.name for shard in shards} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    assert not list(whole.glob("*.index.json"))
    for one, other in zip(logits(whole, photo), logits(sharded, photo), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", ["bin", "legacy", "safetensors"])
def test_rows_beyond_the_vocabulary_are_left_out(form, convert, weights, tmp_path):
    grown = {name: torch.cat([weights[name], torch.full((50, 64), 7.0)]) for name in VOCABULARY}
    path = tmp_path / f"grown.{form}"
    if form == "safetensors":
        save_file({**weights, **grown}, path)
    else:
        save(path, {**weights, **grown}, _use_new_zipfile_serialization=form == "bin")
    code, message, output = convert(path)
    assert code == 0, message
    assert f"{EMBEDDINGS}: keeping 428 of 478 rows" in message
    assert all(torch.equal(stored(output)[name], weights[name]) for name in VOCABULARY)


def test_tensors_that_share_memory_or_are_strided_are_written_apart(convert, weights, tmp_path):
    shared = {**weights, VOCABULARY[1]: weights[EMBEDDINGS]}
    shared["llm_projector.model.0.weight"] = weights["llm_projector.model.0.weight"].T.contiguous().T
    names = [name for name in weights if name.endswith("layer_norm1.weight")]
    flat = torch.cat([weights[name] for name in names])
    shared.update(zip(names, flat.split([len(weights[name]) for name in names]), strict=True))
    code, message, output = convert(save(tmp_path / "shared.bin", shared))
    assert code == 0, message
    written = stored(output)
    assert torch.equal(written[VOCABULARY[1]], weights[EMBEDDINGS])
    assert all(torch.equal(written[name], value) for name, value in to_hf(weights).items() if name != VOCABULARY[1])


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_and_there_again_changes_no_byte(suffix, dtype, convert, weights, tmp_path, capsys):
    arguments = ("--dtype", dtype, "--max-shard-size", "500KB")
    _, _, first = convert(GOLDEN / "weights.safetensors", *arguments, output="first")
    back = tmp_path / f"back.{suffix}"
    assert main(["--reverse", "--checkpoint", str(first), "--output", str(back)]) == 0
    theirs = load_file(back) if suffix == "safetensors" else torch.load(back, weights_only=True)
    assert theirs.keys() == weights.keys()
    assert back.stat().st_size < 1.2 * sum(value.nbytes for value in theirs.values())
    if dtype == "float32":
        assert all(torch.equal(theirs[name], value) for name, value in weights.items())
    _, _, second = convert(back, "--max-shard-size", "500KB", output="second")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in set(names) - {"README.md"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_sizes_and_normalization_come_from_the_base_folders(convert, bases):
    edit_json(bases["--text-model"] / "config.json", sliding_window=77, vocab_size=999, auto_map={"AutoConfig": "x.Y"})
    vision = {"size": {"height": 56, "width": 56}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (bases["--vision-model"] / "preprocessor_config.json").write_text(json.dumps({**vision, "resample": 3}))
    mask = {"size": {"longest_edge": 128}, "image_mean": [0.7, 0.8, 0.9], "image_std": [0.3, 0.2, 0.1]}
    (bases["--mask-encoder"] / "preprocessor_config.json").write_text(json.dumps(mask))
    code, message, output = convert(GOLDEN / "weights.safetensors")
    assert code == 0, message
    assert "resample=3" in message
    config, images = AutoConfig.from_pretrained(output), AutoProcessor.from_pretrained(output).image_processor
    assert (config.text_config.sliding_window, config.text_config.vocab_size) == (77, 428)
    assert "x.Y" not in (output / "config.json").read_text()
    assert (config.seg_token_id, config.phrase_start_token_id, config.phrase_end_token_id) == (425, 426, 427)
    assert list(images.vision_mean) == [0.1, 0.2, 0.3]
    assert list(images.segmentor_std) == [0.3, 0.2, 0.1]
    assert (images.vision_size, images.segmentor_size) == (56, 128)


@pytest.mark.parametrize("written", [True, False], ids=["both-written", "one-written"])
def test_a_tied_qwen3_is_converted_with_its_chat_format(written, convert, bases, weights, tmp_path, photo):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)
    config.save_pretrained(bases["--text-model"])
    expected = ExpectedTensors.of(read_base_models(*(bases[name] for name in BASE_ARGUMENTS), overrides_of(bases))[0])
    generator = torch.Generator().manual_seed(0)
    tied = {name: torch.randn(shape, generator=generator) / 8 for name, shape in from_hf(expected.shapes).items()}
    tied |= {name: value for name, value in weights.items() if not name.startswith("llm.")}
    tied[VOCABULARY[1]] = tied[EMBEDDINGS]
    if not written:
        del tied[VOCABULARY[1]]
    code, message, output = convert(save(tmp_path / "tied.bin", tied))
    assert code == 0, message
    assert AutoProcessor.from_pretrained(output).chat_format == "qwen3"
    model = AutoModel.from_pretrained(output)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(model.llm.lm_head.weight, tied[EMBEDDINGS])
    assert all(torch.isfinite(values).all() for values in logits(output, photo))
    back = tmp_path / "back.safetensors"
    assert main(["--reverse", "--checkpoint", str(output), "--output", str(back)]) == 0
    assert load_file(back).keys() == tied.keys()


def test_card_names_tasks_bases_and_hash_and_its_example_runs(convert, tmp_path, monkeypatch, photo):
    _, _, output = convert(GOLDEN / "weights.safetensors", "--dtype", "bfloat16")
    card = ModelCard.load(output / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-segmentation"
    digest = hashlib.sha256((GOLDEN / "weights.safetensors").read_bytes()).hexdigest()
    for words in (
        digest,
        "ovseg",
        "license of these weights",
        "| language model | text |",
        "--dtype bfloat16",
    ):
        assert words in card.text
    assert str(tmp_path) not in card.text
    monkeypatch.chdir(output)
    Image.fromarray(photo).save("photo.jpg")
    example = card.text.split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {})


def test_keys_that_do_not_fit_are_named(refused, weights, tmp_path):
    spoiled = dict(weights)
    del spoiled["bg_embeds.weight"], spoiled["llm.model.norm.weight"]
    spoiled["llm_projector.model.0.weight"] = torch.zeros(3, 4)
    spoiled["llm_projector.model.0.bias"] = torch.zeros(32, dtype=torch.int64)
    spoiled["surplus.weight"] = torch.zeros(2)
    spoiled["counter"] = 5
    message = refused(save(tmp_path / "spoiled.bin", spoiled))
    assert "2 missing:\n  llm.model.norm.weight\n  bg_embeds.weight" in message
    assert "2 unexpected:\n  surplus.weight\n  counter (a int)" in message
    assert "2 mis-shaped:" in message
    assert "llm_projector.model.0.weight: is 3 x 4, needs 32 x 64" in message
    assert "llm_projector.model.0.bias: holds torch.int64, needs floating point" in message


def test_long_reports_are_cut_with_a_count_of_the_rest(refused, weights, tmp_path):
    few = {name: value for name, value in weights.items() if not name.startswith("segmentor.encoder.")}
    gone = len(weights) - len(few)
    message = refused(save(tmp_path / "few.bin", few))
    assert f"{gone} missing:" in message
    assert f"... and {gone - 20} more" in message
    assert len(message.splitlines()) < 30


def test_unexpected_keys_can_be_left_out_and_derived_buffers_always_are(refused, convert, weights, tmp_path):
    buffers = {"visual_encoder.vision_model.embeddings.position_ids": torch.arange(16)[None]}
    buffers["llm.model.rotary_emb.inv_freq"] = torch.ones(8)
    assert convert(save(tmp_path / "buffers.bin", {**weights, **buffers}), output="buffers")[0] == 0
    path = save(tmp_path / "surplus.bin", {**weights, "surplus.weight": torch.zeros(2)})
    assert "1 unexpected:\n  surplus.weight" in refused(path)
    code, message, output = convert(path, "--ignore-unexpected")
    assert code == 0
    assert "left out, since the model has no use for them: surplus.weight" in message
    assert stored(output).keys() == to_hf(weights).keys()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        pytest.param(lambda name: f"module.{name}", "every name begins with 'module.'", id="wrapped"),
        pytest.param(
            lambda name: name.replace("visual_encoder", "vision_encoder"), "the reference's `main` branch", id="main"
        ),
        pytest.param(lambda name: to_hf({name: 0}).popitem()[0], "this is already converted", id="converted"),
        pytest.param(
            lambda name: name if name.startswith(("segmentor.", "seg_connector.")) else None, "stage-1", id="stage-1"
        ),
        pytest.param(
            lambda name: name if name.startswith(("visual_projector.", "seg_projector.")) else None,
            "stage-2",
            id="stage-2",
        ),
        pytest.param(lambda name: f"transformer.{name}", "looks like another model", id="another-model"),
        pytest.param(lambda name: name.replace("llm.", "llm.lora_A."), "adapter weights", id="adapter"),
    ],
)
def test_causes_that_names_betray_are_hinted_at(change, hint, refused, weights, tmp_path):
    renamed = {change(name): value for name, value in weights.items() if change(name)}
    message = refused(save(tmp_path / "renamed.bin", renamed))
    assert hint in message.splitlines()[-1]


@pytest.mark.parametrize(
    ("folder", "fields", "hint"),
    [
        ("--text-model", {"hidden_size": 128}, "hint: the sizes in --text-model are not"),
        ("--vision-model", {"hidden_size": 64}, "hint: the sizes in --vision-model are not"),
        ("--vision-model", {"num_hidden_layers": 4}, "hint: the sizes in --vision-model are not"),
        ("--mask-encoder", {"vision_config": {"mlp_dim": 99}}, "hint: the sizes in --mask-encoder are not"),
        ("--config", {"segmentor_config": {}}, "hint: the sizes in --config are not"),
    ],
)
def test_sizes_of_other_base_models_are_hinted_at(folder, fields, hint, refused, bases):
    path = bases[folder] if folder == "--config" else bases[folder] / "config.json"
    if "vision_config" in fields:
        fields = {"vision_config": {**json.loads(path.read_text())["vision_config"], **fields["vision_config"]}}
    edit_json(path, **fields)
    assert hint in refused(GOLDEN / "weights.safetensors")


def test_too_few_rows_for_the_tokenizer_are_mis_shaped(refused, weights, tmp_path):
    message = refused(save(tmp_path / "few.bin", {**weights, **{name: weights[name][:425] for name in VOCABULARY}}))
    assert f"{EMBEDDINGS}: is 425 x 64, needs 428 x 64" in message
    assert "fewer rows than the tokenizer" in message


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [4, 5])
def test_pickles_of_others_are_refused_without_advice_to_run_them(protocol, refused, tmp_path):
    path, trace = tmp_path / "malicious.bin", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Payload(trace), protocol=protocol))
    message = refused(path)
    assert "no checkpoint that could be read without running what is in it" in message
    assert "weights_only" not in message
    assert not trace.exists()


@pytest.mark.parametrize("form", ["zip", "legacy", "plain-pickle"])
def test_code_in_a_pickle_is_named_and_not_run(form, refused, weights, tmp_path):
    path, trace = tmp_path / "malicious.bin", tmp_path / "trace"
    content = {**weights, "payload": Payload(trace)}
    if form == "plain-pickle":
        path.write_bytes(pickle.dumps(Payload(trace), protocol=2))
    else:
        save(path, content, _use_new_zipfile_serialization=form == "zip")
    message = refused(path)
    assert "malicious.bin holds more than tensors: unpickling it would call posix.system" in message
    assert "nothing in it was run" in message
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_files_that_are_cut_short_are_refused(form, kept, refused, weights, tmp_path):
    path = tmp_path / ("cut.safetensors" if form == "safetensors" else "cut.bin")
    if form == "safetensors":
        save_file(weights, path)
    else:
        save(path, weights, _use_new_zipfile_serialization=form == "zip")
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * kept))
    assert f"{path} is cut short or damaged" in refused(path)


def test_what_is_no_checkpoint_is_refused(refused, tmp_path, picture):
    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "does not exist" in refused(tmp_path / "nothing.bin")
    assert "is empty" in refused(written("empty.bin", b""))
    assert "is a folder" in refused(tmp_path)
    assert "no checkpoint: it begins with b'<!DOCTYP'" in refused(written("page.bin", b"<!DOCTYPE html><html>"))
    assert "Git LFS pointer" in refused(written("lfs.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:0"))
    assert "no checkpoint" in refused(written("pickle.bin", pickle.dumps([1, 2, 3], protocol=2)))
    assert "holds no tensors" in refused(save(tmp_path / "numbers.bin", {"epoch": 3, "state_dict": {"step": 5}}))
    assert "step (a int)" in refused(tmp_path / "numbers.bin")
    assert "holds no state dict, but a list" in refused(save(tmp_path / "list.bin", [torch.zeros(3)]))
    save_file({}, tmp_path / "none.safetensors")
    assert "holds no tensors" in refused(tmp_path / "none.safetensors")
    with zipfile.ZipFile(tmp_path / "archive.bin", "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "a zip archive, but not one of `torch.save`" in refused(tmp_path / "archive.bin")


def test_a_compressed_archive_is_refused_rather_than_read_in_place(refused, weights, tmp_path):
    plain = save(tmp_path / "plain.bin", weights)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    assert "compressed archive" in refused(tmp_path / "packed.bin")


def test_base_folders_that_cannot_be_used_are_refused(refused, bases, tmp_path):
    checkpoint = GOLDEN / "weights.safetensors"
    for argument in BASE_ARGUMENTS:
        kept = bases[argument]
        bases[argument] = tmp_path / "missing"
        assert f"{argument}: {tmp_path / 'missing'} does not exist" in refused(checkpoint)
        bases[argument] = kept
    for argument in BASE_ARGUMENTS:
        config = bases[argument] / "config.json"
        content = config.read_text()
        config.unlink()
        assert f"{config} does not exist" in refused(checkpoint)
        config.write_text("{")
        assert f"{config} cannot be read" in refused(checkpoint)
        config.write_text('{"model_type": "nobody-knows"}')
        assert f"{argument}: {config} is of model_type 'nobody-knows'" in refused(checkpoint)
        config.write_text(content)
    bases["--vision-model"], bases["--mask-encoder"] = bases["--mask-encoder"], bases["--vision-model"]
    assert "--vision-model" in refused(checkpoint)
    bases["--vision-model"], bases["--mask-encoder"] = bases["--mask-encoder"], bases["--vision-model"]
    preprocessor = bases["--vision-model"] / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    assert "makes images of {'height': 384, 'width': 384}, the model takes 56" in refused(checkpoint)
    preprocessor.unlink()
    (bases["--text-model"] / "tokenizer.json").unlink()
    assert "holds no tokenizer that can be read" in refused(checkpoint)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds no JSON object"),
        ('{"hiden": 3}', "XSamConfig has no field 'hiden'"),
        ('{"segmentor_config": {"num_querys": 3}}', "segmentor_config has no field 'num_querys'"),
        ('{"segmentor_config": 5}', "segmentor_config must be an object of fields, got 5"),
        ('{"segmentor_config": {"num_feature_levels": 5}}', "num_feature_levels must be 3"),
        ('{"image_token_index": 5}', "image_token_index must be negative"),
        ('{"vision_config": {"num_attention_heads": 5}}', "no model can be built from the configuration"),
    ],
)
def test_overrides_that_cannot_be_used_are_refused(content, message, refused, bases):
    bases["--config"].write_text(content)
    assert message in refused(GOLDEN / "weights.safetensors")


def test_nothing_is_overwritten_and_options_are_checked(convert, tmp_path, capsys):
    checkpoint = GOLDEN / "weights.safetensors"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    code, message, _ = convert(checkpoint, output="full")
    assert (code, "is not empty" in message) == (2, True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]
    (tmp_path / "file").write_text("mine")
    code, message, _ = convert(checkpoint, output="file")
    assert (code, "is a file; a folder is to be written" in message) == (2, True)
    code, message, _ = convert(checkpoint, "--max-shard-size", "huge")
    assert (code, "'huge' is no size" in message) == (2, True)
    (tmp_path / "vacant").mkdir()
    assert convert(checkpoint, output="vacant")[0] == 0
    for arguments in (["--output", "x"], ["--reverse", "--output", "x.bin", "--dtype", "float32"]):
        with pytest.raises(SystemExit) as ended:
            main(["--checkpoint", str(checkpoint), *arguments])
        assert ended.value.code == 2


def test_the_way_back_refuses_what_it_cannot_do(tmp_path, tiny_folder, capsys):
    def refuse(folder, output="back.bin"):
        before = sorted(tmp_path.rglob("*"))
        assert main(["--reverse", "--checkpoint", str(folder), "--output", str(tmp_path / output)]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    assert "does not exist" in refuse(tmp_path / "nothing")
    assert "must end in" in refuse(tiny_folder, "back.txt")
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    edit_json(copy / "config.json", model_type="phi3")
    assert "holds a model of type 'phi3', not 'xsam'" in refuse(copy)
    (copy / "config.json").unlink()
    assert "config.json does not exist" in refuse(copy)
    shutil.copy(tiny_folder / "config.json", copy)
    weights = load_file(copy / "model.safetensors")
    del weights["bg_embeds.weight"]
    save_file(weights, copy / "model.safetensors")
    assert "1 missing:\n  bg_embeds.weight" in refuse(copy)
    (copy / "model.safetensors").unlink()
    assert "holds neither model.safetensors nor" in refuse(copy)
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    assert "model-1.safetensors does not exist" in refuse(copy)
    (tmp_path / "back.bin").write_text("mine")
    assert "nothing is ever overwritten" in refuse(tiny_folder)


def test_too_little_space_is_noticed_before_writing(refused, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    assert "are needed, 1,048,576 are free" in refused(GOLDEN / "weights.safetensors")


def full_disk(*arguments, **options):
    raise OSError(28, "No space left on device")


def test_a_disk_that_fills_up_leaves_nothing(refused, monkeypatch):
    monkeypatch.setattr("xsam_model.conversion.weight_files.save_file", full_disk)
    assert "No space left on device" in refused(GOLDEN / "weights.safetensors")


def large_checkpoint(bases, tmp_path, num_bytes):
    """Write a bfloat16 checkpoint of about `num_bytes`, nearly all in the language model, and its base folders."""
    hidden = 1024
    layers = num_bytes // (2 * (4 * hidden * hidden + 3 * hidden * 4 * hidden))
    edit_json(
        bases["--text-model"] / "config.json",
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
    )
    named = [word for pair in bases.items() for word in map(str, pair)]
    config, _, _ = read_base_models(*(bases[name] for name in BASE_ARGUMENTS), overrides_of(bases))
    shapes = from_hf(ExpectedTensors.of(config).shapes)
    path = tmp_path / "pytorch_model.bin"
    save(path, {name: torch.full(shape, 0.01, dtype=torch.bfloat16) for name, shape in shapes.items()})
    return path, named


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(number, bases, tmp_path, processes):
    named = [word for pair in bases.items() for word in map(str, pair)]
    checkpoint = ["--checkpoint", str(GOLDEN / "weights.safetensors"), "--max-shard-size", "100KB"]
    before = sorted(tmp_path.iterdir())
    said, written = processes.Pipe(duplex=False)
    arguments = [*checkpoint, *named, "--output", str(tmp_path / "out")]
    running = processes.Process(target=_run_on_a_slow_disk, args=(arguments, written))
    running.start()
    written.close()
    assert said.poll(60)
    said.recv()
    assert list(tmp_path.glob(".out-*/out/model*"))
    os.kill(running.pid, number)
    errors = said.recv() if said.poll(60) else ""
    running.join(60)
    running.kill()
    assert running.exitcode == 130, errors
    assert "interrupted: nothing was written" in errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == before


def _run_command(arguments):
    sys.argv = ["convert_xsam_to_hf", *arguments]
    runpy.run_module("xsam_model.convert_xsam_to_hf", run_name="__main__", alter_sys=True)


def _run_on_a_slow_disk(arguments, told):
    """Run the command, to which a file takes a minute; tell when the first is whole, and at last what was printed."""
    errors = io.StringIO()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background

    def save_slowly(*args, **options):
        save_file(*args, **options)
        told.send(None)
        time.sleep(60)

    weight_files.save_file = save_slowly
    try:
        with redirect_stderr(errors):
            _run_command(arguments)
    finally:
        told.send(errors.getvalue())


def peak_memory(arguments, processes):
    """Greatest resident memory of a process that runs the command, in bytes, and its exit code."""
    ours, theirs = processes.Pipe()
    process = processes.Process(target=_run_and_tell, args=(arguments, theirs))
    process.start()
    theirs.close()
    told = ours.recv()
    process.join(60)
    return told


def _run_and_tell(arguments, told):
    code = main(arguments)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    told.send((peak, code))


@pytest.mark.timeout(300)
def test_conversion_takes_less_memory_than_the_checkpoint_and_two_fifths(bases, tmp_path, processes):
    checkpoint, named = large_checkpoint(bases, tmp_path, 300_000_000)
    size = checkpoint.stat().st_size
    assert size > 270_000_000
    there = ["--checkpoint", str(checkpoint), *named, "--output"]
    runs = {
        "nothing": ["--checkpoint", str(tmp_path / "missing.bin"), *named, "--output", "x"],
        "one file": [*there, str(tmp_path / "one")],
        "shards": [*there, str(tmp_path / "shards"), "--max-shard-size", "50MB"],
        "cast": [*there, str(tmp_path / "cast"), "--dtype", "float16"],
        "back": ["--reverse", "--checkpoint", str(tmp_path / "one"), "--output", str(tmp_path / "back.bin")],
    }
    peaks = {name: peak_memory(arguments, processes) for name, arguments in runs.items()}
    baseline, _ = peaks.pop("nothing")
    assert {name: code for name, (_, code) in peaks.items()} == dict.fromkeys(peaks, 0)
    ratios = {name: (peak - baseline) / size for name, (peak, _) in peaks.items()}
    # Pages of mapped files count, and how many are mapped at once depends on the kernel: a tenth more on some.
    assert max(ratios.values()) < 1.4, ratios
    assert ratios["shards"] < 0.6, ratios
