"""`fetch-model` against a small Hub on the loopback address, with the reference implementation's tiny checkpoint."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.flows.conftest import Ended
from tests.support.drivers import REPOSITORY, listing
from tests.support.hub import Hub, running
from tests.xsam_model.conftest import write_base_folders
from xsam_model import XSamForSegmentation
from xsam_model.conversion.new_output import whole_folder
from xsam_model.convert_xsam_to_hf import from_hf

GOLDEN = REPOSITORY / "tests/golden/A"
PICTURE = REPOSITORY / "examples/photos/coffee.jpg"
CHECKPOINT_FILE = "s3_mixed_finetune/pytorch_model.bin"
Fetch = Callable[..., Ended]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders checkpoint, text, vision and mask, and overrides in xsam.json."""
    folder = tmp_path_factory.mktemp("released")
    write_base_folders(GOLDEN, folder)
    file = folder / "checkpoint" / CHECKPOINT_FILE
    file.parent.mkdir(parents=True)
    torch.save(load_file(GOLDEN / "weights.safetensors"), file)
    return folder


@pytest.fixture
def hub(released: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Hub]]:
    """A Hub with the four repositories, and an empty cache."""
    from huggingface_hub import constants

    names = {
        "checkpoint": "hao9610/X-SAM",
        "text": "microsoft/Phi-3-mini-4k-instruct",
        "vision": "google/siglip2-so400m-patch14-384",
        "mask": "facebook/sam-vit-large",
    }
    hubs = {part: Hub(name, _files(released / part), kind="models") for part, name in names.items()}
    hubs["text"].files |= {"model-00001-of-00002.safetensors": b"large", "model.safetensors.index.json": b"{}"}
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with running(*hubs.values()) as first:
        monkeypatch.setattr(constants, "ENDPOINT", first.endpoint)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", first.endpoint + template)
        yield hubs


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fetch(cli: Fetch, released: Path, tmp_path: Path) -> Fetch:
    given = ["--output", tmp_path / "x-sam", "--config", released / "xsam.json", "--picture", PICTURE]
    return lambda *more: cli("fetch-model", *given, *more)


def refused(ended: Ended, tmp_path: Path, *words: str) -> None:
    """Check for one message that holds these words, and that there is neither an output nor a part of one."""
    assert ended.code == 2, ended
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err
    assert not [word for word in words if word not in ended.err], ended.err
    assert not list(tmp_path.glob("*x-sam*"))


def fetched(hub: Hub) -> list[str]:
    """The files that were fetched from a repository, and from which byte."""
    asked = [(path.rpartition("/")[2], span) for method, path, span, _ in hub.requests if method == "GET"]
    return [f"{name} {span}".strip() for name, span in asked if name in {path.rpartition("/")[2] for path in hub.files}]


def test_an_interrupted_download_goes_on_and_becomes_a_model_that_has_labeled_a_picture(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has come of a piece of this size is written when it is whole.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**16)
    hub["checkpoint"].breaks_after = half = 10 * 2**16
    ended = fetch()
    refused(ended, tmp_path, "--checkpoint", "hao9610/X-SAM", "503", "the same command goes on")
    assert "hao9610/X-SAM: 0.0" in ended.out
    assert "are needed, " in ended.out
    (partial,) = (tmp_path / "cache").glob("models--*/blobs/*.incomplete")
    assert partial.stat().st_size == half

    for one in hub.values():
        one.breaks_after = None
        one.requests.clear()
    ended = fetch()
    assert (ended.code, ended.err) == (0, "")
    assert fetched(hub["checkpoint"]) == [f"pytorch_model.bin bytes={half}-"]
    assert fetched(hub["text"]) == []
    # A branch may move during hours: what was seen at the start is fetched, and the cache knows it by the branch.
    assert not [path for one in hub.values() for _, path, *_ in one.requests if "/resolve/main/" in path]
    output = tmp_path / "x-sam"
    assert Image.open(output / "example.png").width > 100
    assert "look at" in ended.out
    assert f"--model {output}" in ended.out
    expected = load_file(GOLDEN / "weights.safetensors")
    weights = from_hf(XSamForSegmentation.from_pretrained(output).state_dict())
    assert all(torch.equal(weights[name], expected[name][: len(weights[name])]) for name in weights)
    assert "model-00001-of-00002.safetensors" not in str(listing(tmp_path / "cache"))
    card = (output / "README.md").read_text()
    assert "microsoft/Phi-3-mini-4k-instruct" in card
    assert "--output x-sam " in card
    assert not list(tmp_path.glob("writing-*"))


def test_all_that_is_in_the_cache_is_used_without_the_hub(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fetch("--no-picture").code == 0
    shutil.rmtree(tmp_path / "x-sam")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = fetch("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "x-sam" / "model.safetensors").exists()
    refused(fetch("--output", tmp_path / "other", "--vision-model", "google/other"), tmp_path / "other",
            "--vision-model", "HF_HUB_OFFLINE", "google/other")  # fmt: skip


def test_a_picture_that_cannot_be_labeled_costs_no_model(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(model: Path, *_: object) -> str:
        # Here the kernel may end the process: the model has its name already.
        assert model == tmp_path / "x-sam"
        assert (model / "README.md").exists()
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("actors.released_model.fetch._label", out_of_memory)
    ended = fetch()
    assert ended.code == 2
    assert ended.err.startswith(f"error: the model is written to {tmp_path / 'x-sam'}, and whole; the picture ")
    assert "could not be labeled: OutOfMemoryError: CUDA out of memory" in ended.err
    assert "--no-picture, or other --categories" in ended.err
    assert XSamForSegmentation.from_pretrained(tmp_path / "x-sam")


@pytest.mark.parametrize(
    ("asked", "told"), [("a <SEG> b", "reserves"), (",".join(f"thing {n}" for n in range(2000)), "fit")]
)
def test_categories_that_the_model_cannot_be_asked_for_are_refused_before_the_weights_are_fetched(
    asked: str, told: str, fetch: Fetch, hub: dict[str, Hub], tmp_path: Path
) -> None:
    refused(fetch("--categories", asked), tmp_path, "--categories", told, "--no-picture", "nothing was written")
    assert "tokenizer.json" in fetched(hub["text"])
    assert not fetched(hub["checkpoint"])


def test_a_second_command_for_one_output_is_refused_before_it_fetches_anything(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path
) -> None:
    with whole_folder(tmp_path / "x-sam") as beside:
        (beside / "weights").write_text("of the first")
        ended = fetch()
        assert (ended.code, ended.err.count("error: ")) == (2, 1)
        assert "another process is writing" in ended.err
        assert not any(fetched(one) for one in hub.values())
    assert [path.name for path in (tmp_path / "x-sam").iterdir()] == ["weights"]


@pytest.mark.parametrize("token", ["\u201dhf_typed\u201d", "hf_two\nlines", "hf_mounted\n"])
def test_an_odd_token_gets_one_message_or_is_taken_without_its_line_end(
    token: str, fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    ended = fetch("--dry-run")
    if token == "hf_mounted\n":
        assert (ended.code, ended.err) == (0, "")
        assert {authorization for *_, authorization in hub["text"].requests} == {"Bearer hf_mounted"}
    else:
        refused(ended, tmp_path, "HF_TOKEN", "copy it again")
        assert not any(word in ended.err for word in ("typed", "hf_two", "the same command"))


def test_folders_are_used_as_they_are(fetch: Fetch, hub: dict[str, Hub], released: Path, tmp_path: Path) -> None:
    before = listing(released)
    parts = {"--checkpoint": "checkpoint", "--text-model": "text", "--vision-model": "vision", "--mask-encoder": "mask"}
    ended = fetch("--no-picture", *[word for option, part in parts.items() for word in (option, released / part)])
    assert (ended.code, ended.err) == (0, "")
    assert not any(one.requests for one in hub.values())
    assert listing(released) == before
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_too_little_room_is_refused_before_anything_is_fetched(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_dry_run: bool
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10_000_000))
    ended = fetch(*["--dry-run"] * is_dry_run)
    refused(ended, tmp_path, "no room", "0.01 GB are free", "--output", "HF_HOME")
    assert not any(fetched(one) for one in hub.values())
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_tells_sizes_and_fetches_nothing(fetch: Fetch, hub: dict[str, Hub], tmp_path: Path) -> None:
    ended = fetch("--dry-run")
    assert (ended.code, ended.err) == (0, "")
    assert all(one.repo in ended.out for one in hub.values())
    assert "are free in" in ended.out
    assert not any(fetched(one) for one in hub.values())
    assert {path.name for path in tmp_path.iterdir()} <= {"prefect"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--checkpoint", "hao9610/nothing"], ["--checkpoint", "no repository", "/hao9610/nothing", "HF_TOKEN"]),
        (["--checkpoint", "hao9610/X-SAM@v9"], ["--checkpoint", "no revision v9"]),
        (["--checkpoint-file", "s9/model.bin"], ["--checkpoint", "no file s9/model.bin"]),
        (["--text-model", "a/b/c"], ["--text-model", "a/b/c", "neither a folder here nor a repository"]),
        (["--mask-encoder", "./nothing"], ["--mask-encoder", "./nothing does not exist"]),
        (["--picture", "nothing.jpg"], ["--picture", "nothing.jpg", "--no-picture"]),
        (["--dtype", "int8"], ["--dtype", "bfloat16"]),
    ],
)
def test_what_is_not_there_is_named(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, words: list[str], told: list[str]
) -> None:
    refused(fetch(*words), tmp_path, *told)
    assert not any(fetched(one) for one in hub.values())


def test_a_gated_repository_needs_the_token_of_the_environment(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub["text"].token, hub["text"].is_gated = "hf_right", True
    refused(fetch(), tmp_path, "--text-model", hub["text"].repo, "ask there for access", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    ended = fetch()
    refused(ended, tmp_path, "with the account of HF_TOKEN")
    assert "hf_wrong" not in ended.err + ended.out
    assert not fetched(hub["checkpoint"])
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    hub["checkpoint"].breaks_after = 0
    refused(fetch(), tmp_path, "--checkpoint", "503")
    assert "tokenizer.json" in fetched(hub["text"])


def test_a_hub_that_does_not_answer_is_named(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused(fetch(), tmp_path, "--checkpoint", "http://127.0.0.1:9/hao9610/X-SAM cannot be fetched")


@pytest.mark.parametrize("page", [b"<html>sign in</html>", "<html>à vous identifier</html>".encode("latin-1")])
def test_a_page_instead_of_the_hub_is_told_and_what_the_cache_holds_is_used(
    page: bytes, fetch: Fetch, hub: dict[str, Hub], tmp_path: Path
) -> None:
    hub["mask"].page = page
    ended = fetch("--dry-run")
    refused(ended, tmp_path, "--mask-encoder", hub["mask"].repo, "is not the Hub", "HTTPS_PROXY", "HF_ENDPOINT")
    assert "the same command" not in ended.err
    hub["mask"].page = None
    assert fetch("--no-picture").code == 0
    shutil.rmtree(tmp_path / "x-sam")
    hub["mask"].page = page
    assert fetch("--no-picture").code == 0


def test_a_partial_file_larger_than_the_file_is_begun_anew(fetch: Fetch, hub: dict[str, Hub], tmp_path: Path) -> None:
    lfs = hub["checkpoint"].sibling(CHECKPOINT_FILE)["lfs"]
    partial = tmp_path / "cache/models--hao9610--X-SAM/blobs" / f"{lfs['sha256']}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (lfs["size"] + 1))
    ended = fetch("--no-picture")
    assert (ended.code, ended.err) == (0, "")
    assert "of it here" not in ended.out
    assert fetched(hub["checkpoint"]) == ["pytorch_model.bin"]


def test_a_file_that_did_not_arrive_as_the_hub_has_it_is_removed(
    fetch: Fetch, hub: dict[str, Hub], tmp_path: Path
) -> None:
    digest = hub["checkpoint"].sibling(CHECKPOINT_FILE)["lfs"]["sha256"]
    partial = tmp_path / "cache/models--hao9610--X-SAM/blobs" / f"{digest}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 1000)
    refused(fetch(), tmp_path, "--checkpoint", "another SHA-256")
    assert fetched(hub["checkpoint"]) == ["pytorch_model.bin bytes=1000-"]
    assert list(partial.parent.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_leaves_nothing(fetch: Fetch, hub: dict[str, Hub], tmp_path: Path) -> None:
    weights = load_file(GOLDEN / "weights.safetensors")
    del weights["bg_embeds.weight"]
    file = io.BytesIO()
    torch.save(weights, file)
    hub["checkpoint"].files[CHECKPOINT_FILE] = file.getvalue()
    refused(fetch(), tmp_path, "does not fit the model", "bg_embeds.weight", "nothing was written")
