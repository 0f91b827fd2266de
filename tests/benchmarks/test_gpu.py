"""The GPU benchmark works at the tiny size, and its formulas agree with what torch counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import aims, full_size_forward, whole_run
from benchmarks.gpu.flops import flops_per_image
from benchmarks.report import gpu_lines
from xsam_model.configuration_xsam import XSamConfig
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.testing import untrained_tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]


def test_runs_at_the_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size_forward, "SECONDS_PER_CASE", 0.01)
    options = ["--size", "tiny", "--batches", "1", "2", "--categories", "3", "--out", str(tmp_path)]
    options += ["--prompts", "1", "3", "--images", "2"]
    monkeypatch.setattr("sys.argv", ["full_size_forward", *options])
    full_size_forward.main()
    document = json.loads((tmp_path / "full_size_forward.json").read_text())
    assert [case["batch"] for case in document["cases"]] == [1, 2]
    for parts in document["parts"]:
        spent = parts["ms_per_image"]
        assert len(spent) == 7
        assert all(milliseconds > 0 for part, milliseconds in spent.items() if part != "all else")
    assert all(case["finite"] and case["tflop_per_image"] > 0 for case in document["cases"])
    assert all(count > 0 for count in document["facts"]["tflop_of_decoders"].values())
    assert (tmp_path / "full_size_forward.png").stat().st_size > 1000
    assert [(case["images"], case["prompts"]) for case in document["prompts"]] == [(2, 1), (2, 3)]
    assert all(case["largest_difference"] < 1e-4 for case in document["prompts"])
    assert sum(line.startswith("| ") for line in gpu_lines(tmp_path / "full_size_forward.json")) == 6


def test_a_whole_run_at_the_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--size", "tiny", "--images", "4", "--images-per-shard", "2", "--masks", "3", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["whole_run", *options])
    whole_run.main()
    facts = json.loads((tmp_path / "whole_run.json").read_text())
    assert facts["images_per_second"] > 0
    assert int(facts["batch_size"]) > 0
    assert 0 < facts["masks_per_image"] < 12
    assert facts["rle_characters_per_mask"] > 10
    kept = shutil.copy(REPOSITORY / "benchmarks" / "gpu" / "full_size_forward.json", tmp_path)
    told = gpu_lines(Path(kept))[-1]
    assert told.startswith(f"A whole run on {facts['device']}")
    assert "from the first commit to the last" in told


@pytest.mark.parametrize(
    ("share", "busy", "code", "said"),
    [
        (0.5, 0.95, 0, ["met", "met"]),
        (0.49, 0.96, 1, ["MISSED", "met"]),
        (0.6, None, 1, ["met", "MISSED"]),
    ],
)
def test_what_is_aimed_at_is_compared_with_the_best_batch(tmp_path: Path, capsys, share, busy, code, said) -> None:
    worse = {"batch": 1, "categories": 80, "tflop_per_second": 100.0, "share_of_measured_peak": 0.2}
    best = {"batch": 16, "categories": 12, "tflop_per_second": 300.0, "share_of_measured_peak": share}
    (tmp_path / "full_size_forward.json").write_text(json.dumps({"cases": [worse, best]}))
    (tmp_path / "whole_run.json").write_text(json.dumps({"device_busy_share": busy}))
    assert aims.main(tmp_path) == code
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == said
    assert "batch 16, 12 categories" in lines[0]
    assert "not measured" in lines[1] or busy is not None


def test_operations_of_the_towers_are_those_that_torch_counts() -> None:
    config = untrained_tiny_config(vision_select_layer=-1)
    # torch counts no attention that is fused on the CPU
    model = XSamForSegmentation._from_config(config, attn_implementation="eager").requires_grad_(False)
    vision, mask = config.vision_config.image_size, config.mask_encoder_config.image_size
    expected = flops_per_image(config, 100)
    parts = {
        "vision tower": lambda: model._encode_vision(torch.zeros(1, 3, vision, vision)),
        "mask encoder": lambda: model.segmentor.encode(torch.zeros(1, 3, mask, mask), {4}),
        "language model": lambda: model.llm.base_model(inputs_embeds=torch.zeros(1, 100, 96), use_cache=False),
    }
    for part, run in parts.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        causal_half = 4 * 96 * (100 * 100 - 100 * 101 / 2) * 2 if part == "language model" else 0
        assert expected[part] + causal_half == pytest.approx(counter.get_total_flops(), rel=0.02), part


def test_the_full_size_costs_what_its_sizes_say() -> None:
    parts = flops_per_image(XSamConfig(), 1810)
    # 3.8 billion parameters of the language model, two operations each, for every token; its embedding is a look-up.
    assert parts["language model"] == pytest.approx(2 * 3.6e9 * 1810, rel=0.08)
    assert sum(parts.values()) == pytest.approx(17.5e12, rel=0.01)
