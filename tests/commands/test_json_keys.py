"""docs/json.md lists the keys that the commands print: all of them, and no others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli import app
from memorysam_cli.engine import demo as demonstration
from memorysam_cli.engine.measure import bench as benchmark
from memorysam_cli.engine.measure import rates, trials
from memorysam_cli.engine.measure.rates import Flops, Rate
from memorysam_cli.engine.measure.trials import Outcome
from memorysam_cli.engine.weights import portable
from memorysam_cli.model.reference import reference_shapes
from memorysam_cli.storage import hub

from ..model.upstream import drawn
from .trained import stand_in, uncounted

PAGE = (Path(__file__).parent.parent.parent / "docs" / "json.md").read_text(encoding="utf-8")
DOCUMENTED = {
    section.partition("\n")[0]: {
        key for cell in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)
    }
    for section in PAGE.split("\n## ")[1:]
}
TINY = [
    "data.image_size=32", "data.workers=0", "data.modalities=[img,depth]", "train.batch=4", "train.max_steps=1",
]  # fmt: skip
CHANGES = [word for change in TINY for word in ("--set", change)]
BEST = "runs/latest/checkpoints/best.safetensors"
COMMANDS = {
    "memorysam": [],
    "prepare": ["prepare", "synthetic", "data", "--scenes", "12", "--size", "32"],
    "check": ["check", "data"],
    "prepare hha": [
        "prepare",
        "hha",
        "data/mini-deliver",
        "--depth",
        "depth/**/*.png",
        "--camera",
        "16,16,16,16",
        "--out",
        "../hha",
    ],
    "plan": ["plan", "--recipe", "demo", *CHANGES],
    "train": ["train", "--recipe", "demo", *CHANGES],
    "watch": ["watch"],
    "evaluate": ["evaluate", "--workers", "0"],
    "evaluate --robustness": ["evaluate", "--robustness", "emm", "--workers", "0"],
    "predict": ["predict", "data/mini-deliver", "--limit", "2", "--workers", "0"],
    "convert": ["convert", "masks", "--to", "coco", "--out", "masks.json"],
    "report": ["report"],
    "demo": ["demo", "--out", "demo", "--scenes", "40", *CHANGES],
    "recipes list": ["recipes", "list"],
    "recipes show": ["recipes", "show", "demo"],
    "recipes show --changes": ["recipes", "show", "demo", "--changes", "--set", "train.epochs=2"],
    "recipes copy": ["recipes", "copy", "demo", "mine.yaml"],
    "recipes diff": ["recipes", "diff", "demo", "default"],
    "recipes schema": ["recipes", "schema"],
    "recipes check": ["recipes", "check", "demo"],
    "weights info": ["weights", "info", BEST],
    "weights verify": ["weights", "verify", BEST],
    "weights merge": ["weights", "merge", BEST, "--out", "full.safetensors"],
    "weights import": ["weights", "import", "RGBD_epoch1_2.0.pth", "--out", "imported.safetensors"],
    "weights export": ["weights", "export", BEST, "--format", "merged", "--out", "merged.pth"],
    "weights fetch": ["weights", "fetch", "sam2-hiera-tiny"],
    "doctor": ["doctor"],
    "weights push": ["weights", "push", "alice/demo", BEST],
    "export": ["export", BEST, "--format", "torch-export", "-m", "img", "--size", "32", "--out", "model.pt2"],
    "card": ["card", BEST],
    "bench": [
        *("bench", "--mode", "predict", "--backbone", "nano", "--size", "64", "--modalities", "1"),
        *("--batch", "1", "--repeats", "1", "--against", "plain"),
    ],
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command printed on stdout, run one after the other in one folder."""
    import contextlib
    import io

    found = {}
    with contextlib.chdir(tmp_path_factory.mktemp("here")), pytest.MonkeyPatch.context() as patch:
        torch.save(drawn(reference_shapes("nano", tokens=25, rank=4)), "RGBD_epoch1_2.0.pth")
        patch.setattr(hub, "fetch", lambda repo, filename, **options: Path(filename))
        # test_bench.py measures, test_export.py exports, and test_plan.py counts; here the names are what counts
        uncounted(patch)
        patch.setattr(rates, "count_flops", lambda *_, **__: Flops(prediction=1, training=3))
        for module in (benchmark, rates):
            patch.setattr(module, "matmul_rate", lambda _device, precision, **_: Rate(1e9, precision))
        patch.setattr(demonstration, "SIZE", 32)
        prepare = demonstration.prepare_scenes

        def prepare_few(root: Path, *, seed: int, scenes: int) -> Any:
            assert scenes == 40, "those that were asked for"
            return prepare(root, seed=seed, scenes=12)

        patch.setattr(demonstration, "prepare_scenes", prepare_few)
        peak = Outcome(True, seconds=(1.0,), peak=3 * 10**9, total=8 * 10**9, free=6 * 10**9)
        patch.setattr(trials, "run", lambda _trial: peak)
        shape = portable.GraphShape(1, 1, 32, 32)
        patch.setattr(portable, "export", lambda _path, out, **_: stand_in(out, shape))
        for name, arguments in COMMANDS.items():
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                assert app.run([*arguments, "--json", *(["-q"] if arguments else [])]) == 0, name
            found[name] = out.getvalue()
    return found


def test_every_command_that_has_json_is_documented() -> None:
    assert set(DOCUMENTED) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_documented_keys_are_those_printed(name: str, answers: dict[str, str]) -> None:
    assert answers[name].count("\n") == 1, "exactly one line, one object"
    printed: dict[str, Any] = json.loads(answers[name])
    assert set(printed) == DOCUMENTED[name]
    assert printed["schema_version"] == 1


def test_the_demo_compares_with_rgb_alone_and_the_majority_class(answers: dict[str, str]) -> None:
    demo = json.loads(answers["demo"])
    assert demo["majority_class"] == "Road" and 0 < demo["miou_majority"] < 4
    assert demo["run"] != demo["run_rgb"] and demo["steps"] == 1
