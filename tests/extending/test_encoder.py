"""The encoder of docs/extending.md trains, resumes, stores, loads, scores and predicts; test_fusion exports it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memorysam_cli.encoders.base import SMALL_HEAD, Backbone, Encoder
from memorysam_cli.errors import UsageError
from memorysam_cli.model.backbone import build_sam2
from memorysam_cli.storage import tensors

from .conftest import Ended, Run, tiny

EXTEND = ("--extend", "my_encoder.py")
SAME = """
import torch
from memorysam_cli.model import load
from memorysam_cli.model.weights import load_unmerged
frames = [torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(n)) for n in range(2)]
with torch.inference_mode():
    merged, apart = (network.logits(frames) for network in (load({0!r}), load_unmerged({0!r})))
assert merged.abs().max() > 0
torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-4)
print(type(load({0!r}).encoder).__name__)
"""

HALF = """
import shutil
from pathlib import Path
shutil.copytree("whole-{0}", "parts-{0}")
shutil.rmtree("parts-{0}/checkpoints/step-00000002")
Path("parts-{0}/checkpoints/last.safetensors").unlink()
"""
"""A run that was killed in its last update, from a whole one."""


@pytest.fixture(scope="module", params=["lora", "full"])
def story(request: pytest.FixtureRequest, warm: Run) -> tuple[str, dict[str, Ended]]:
    """What every command made of it, by the command's name."""
    kind: str = request.param
    options = {"model__encoder": kind, "train__checkpoint_minutes": 1e-9, "model__object_gate": "false"}
    train, whole = ["train", "--recipe", "mine.yaml", "--json"], tiny(**options)
    best = f"whole-{kind}/checkpoints/best.safetensors"
    jobs = {
        "train": [*train, "--out", f"whole-{kind}", *whole],
        "half": ["-c", HALF.format(kind)],
        "resume": ["train", "--resume", f"parts-{kind}", "--json"],
        "verify": ["weights", "verify", best, "--json"],
        "evaluate": ["evaluate", "--weights", best, "--json", "--workers", 0],
        "predict": ["predict", "--weights", best, "--split", "val", "--out", f"masks-{kind}", "--json"],
        "merge": ["weights", "merge", best, "--out", f"merged-{kind}.safetensors"],
        "reference": ["weights", "export", best, "--format", "reference", "--out", f"{kind}.pth"],
        "load": ["-c", SAME.format(best)],
    }
    if kind == "full":  # what comes after the weights is the same for both
        for name in ("verify", "evaluate", "predict", "merge"):
            del jobs[name]
    return kind, dict(zip(jobs, warm(list(jobs.values())), strict=True))


def test_every_command_takes_it(story: tuple[str, dict[str, Ended]]) -> None:
    kind, ended = story
    assert {"train", "resume", "load"} <= set(ended) and (kind == "full" or {"evaluate", "predict"} < set(ended))
    for command in set(ended) - {"reference"}:
        assert ended[command].code == 0, f"{command}: {ended[command].err}"
    assert ended["load"].out == "ConvNet\n"


def test_a_resumed_run_is_the_same_run_bit_for_bit(story: tuple[str, dict[str, Ended]], place: Path) -> None:
    kind, ended = story
    assert json.loads(ended["resume"].out)["resumed"] and json.loads(ended["resume"].out)["steps"] == 2
    states = [
        tensors.read(place / f"{folder}-{kind}" / "checkpoints" / "last.safetensors")[0]
        for folder in ("whole", "parts")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    trunk = {name for name in states[0] if ".trunk." in name}
    if kind == "lora":
        assert trunk and all(".expand.lora_" in name or ".reduce.lora_" in name for name in trunk)
    else:
        assert len(trunk) == 4 * 10


def test_upstream_s_layout_is_refused_by_name(story: tuple[str, dict[str, Ended]]) -> None:
    kind, ended = story
    assert ended["reference"].code != 0 and ended["reference"].err.count("\n") == 1
    assert ("only SAM 2's Hiera" if kind == "lora" else "without LoRA") in ended["reference"].err


@pytest.mark.slow
def test_it_becomes_onnx(story: tuple[str, dict[str, Ended]], warm: Run) -> None:
    kind, _ = story
    out = f"{kind}-onnx.onnx"
    (ended,) = warm(
        [
            [
                *EXTEND,
                "export",
                f"whole-{kind}/checkpoints/best.safetensors",
                "--format",
                "onnx",
                "--size",
                "64x64",
                "--out",
                out,
            ]
        ]
    )
    assert ended.code == 0, ended.err


def test_without_its_file_every_refusal_names_what_named_it(story: tuple[str, dict[str, Ended]], warm: Run) -> None:
    """A stored name never runs code, in a process that has not been given the file."""
    kind, _ = story
    jobs: list[list[object]] = [
        ["predict", "--weights", f"whole-{kind}/checkpoints/best.safetensors", "--split", "val", "--out", "other"],
        ["train", "--resume", f"whole-{kind}"],
        ["recipes", "check", "mine.yaml"],
    ]
    weights, resumed, checked = warm(jobs)
    assert weights.code == 5, weights
    assert f"whole-{kind}/checkpoints/best.safetensors" in weights.err and "memorysam --extend FILE" in weights.err
    assert resumed.code == 2 and "recipe.yaml" in resumed.err and "my_encoder.py" in resumed.err
    assert checked.code == 2 and "mine.yaml:5: model.backbone: must be 'nano'" in checked.err
    assert all(ended.err.count("\n") == 1 for ended in (weights, resumed, checked))


def test_random_base_weights_are_never_taken_by_themselves(warm: Run) -> None:
    (ended,) = warm([["train", "--recipe", "mine.yaml", *tiny(model__base_weights="published"), "--out", "never"]])
    assert ended.code != 0 and "'convnet' has no published weights; set it to random" in ended.err


def test_targets_that_it_has_not_are_refused(warm: Run) -> None:
    (ended,) = warm([["train", "--recipe", "mine.yaml", *tiny(model__lora__targets="[q]"), "--out", "never"]])
    assert ended.code == 2 and "encoder ConvNet has no target 'q' (known: expand, reduce)" in ended.err


def test_where_it_is_registered_the_built_in_encoders_take_their_own_targets_alone(warm: Run) -> None:
    alone = ["recipes", "check", "demo", "--set", "model.lora.targets=[q, expand]"]
    beside, without = warm([["--extend", "my_encoder.py", *alone], alone])
    said = "model.lora.targets.1: must be 'q', 'k', 'v' or 'proj' (got \"expand\")"
    assert beside == without and beside.code == 2 and said in beside.err


class Bad(Encoder):
    channels = (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [images]


def test_what_could_not_be_stored_is_refused() -> None:
    with pytest.raises(UsageError, match="encoder Bad: norm is a BatchNorm2d that keeps running statistics"):
        build_sam2(Backbone(build=Bad, head=SMALL_HEAD), tokens=2)


def test_maps_of_another_shape_are_refused() -> None:
    encoder = Bad()
    with pytest.raises(UsageError, match=r"encoder Bad: its forward gives maps of \[\(1, 3, 32, 32\)\]"):
        list(encoder.levels(torch.zeros(1, 3, 32, 32)))
