"""The scripts of benchmarks/, as far as they decide anything; and in miniature, as a whole."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent.parent.parent / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(text: str, what: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(what)).split()[-1]


def test_the_summary_computes_its_ratios_and_leaves_open_what_is_not_there() -> None:
    fast = {"seconds": 0.5, "peak_bytes": 40e9, "mfu_percent": 41.0}
    results = {
        "train": {
            "off": {"fast": fast, "plain": {"seconds": 6.0, "peak_bytes": 90e9}, "ratio": {"time": 0.5 / 6}},
            "on": {"fast": {"seconds": 0.6, "peak_bytes": 15e9}},
        },
        "equality": {"predict fp32": {"logits": 1e-7}},
        "compile": {"failed": "stopped after 9 s", "last_lines": ["last word"]},
    }
    text = script("gpu").summary(results)
    assert row(text, "plain step / ours  ") == "12"
    assert row(text, "step with saver") == "1.2"
    assert row(text, "peak of training in GB, saver on") == "15"
    assert row(text, "share of the matmul rate in %, prediction") == "–"
    assert "predict fp32                {'logits': 1e-07}" in text
    assert "compile: failed: stopped after 9 s: last word" in text


def test_a_sweep_goes_along_one_axis_at_a_time() -> None:
    sweep = script("sweep")
    asked = argparse.Namespace(
        axes=["size", "precision"], tasks=["train", "predict"], savers=["off", "on"], counts=[1], sizes=[64, 96],
        batches=[1], precisions=["fp32", "tf32"], backbone="nano", modalities=3, size=128, batch=2, precision="fp32",
    )  # fmt: skip
    points = list(sweep.points(asked, torch.device("cpu")))
    assert [(axis, p.size, p.task, p.saver) for axis, p in points[:6]] == [
        ("size", 64, "train", "off"), ("size", 64, "train", "on"), ("size", 64, "predict", "auto"),
        ("size", 96, "train", "off"), ("size", 96, "train", "on"), ("size", 96, "predict", "auto"),
    ]  # fmt: skip
    assert {(axis, p.size, p.precision) for axis, p in points[6:]} == {("precision", 128, "fp32")}  # no TF32 on a CPU
    assert {(p.modalities, p.batch) for _, p in points} == {(3, 2)}


def test_what_does_not_fit_is_not_drawn() -> None:
    fits = {"fits": True, "seconds": 2.0, "peak_bytes": 3e9}
    found = [
        {"task": "train", "saver": "on", "size": 64, "fast": fits, "plain": {"fits": False}},
        {"task": "train", "saver": "on", "size": 96, "fast": {"fits": False}, "plain": None},
    ]
    assert script("sweep").panels_of(found, "size") == {
        "seconds per step": {"training, memory saver": [(64, 2.0)]},
        "peak memory in GB": {"training, memory saver": [(64, 3.0)]},
    }


def test_the_plain_implementation_has_one_point_and_another_network_none() -> None:
    sweep = script("sweep")
    figures = {"fits": True, "seconds": 2.0, "peak_bytes": 3e9}
    middle = {"backbone": "nano", "modalities": 4, "size": 64, "batch": 1, "precision": "fp32"}
    found = [
        {**middle, "task": "train", "saver": saver, "fast": figures, "plain": {**figures, "seconds": seconds}}
        for saver, seconds in (("off", 4.0), ("on", 5.0))
    ]
    assert sweep.panels_of(found, "size")["seconds per step"]["plain train"] == [(64, 4.0)]
    asked = argparse.Namespace(**middle | {"size": 128})
    assert sweep.belongs(found[0], asked, "size") and not sweep.belongs(found[0], asked, "batch")
    asked.backbone = "sam2-hiera-tiny"
    assert not sweep.belongs(found[0], asked, "size")


def test_a_full_size_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="finds no CUDA device"):
        script("gpu_parts").Bench(small=False, out=tmp_path)


def test_no_such_part_and_no_such_axis() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="trian: is not a part"):
        script("gpu").parts("trian")
    with pytest.raises(argparse.ArgumentTypeError, match="sizes: is not an axis"):
        script("sweep").axes("sizes")


@pytest.mark.slow
def test_the_gpu_script_runs_in_miniature_and_tells_what_failed(tmp_path: Path) -> None:
    arguments = ("--small", "--out", str(tmp_path), "--parts", "loss,profile,equality")
    subprocess.run([sys.executable, str(FOLDER / "gpu.py"), *arguments], check=True, capture_output=True)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "failed" not in json.dumps(found)
    assert found["loss"]["bands"]["gradient_difference"] < 1e-5
    assert found["equality"]["predict fp32"]["logits"] < 1e-5
    assert len(found["profile"]["train"]) == 20 and (tmp_path / "profile-train.txt").stat().st_size
    broken = script("gpu").run("no-such-part", out=tmp_path, small=True, seconds=60)
    assert broken["failed"] == "2" and "invalid choice" in broken["last_lines"][-1]
    hung = script("gpu").run("equality", out=tmp_path, small=True, seconds=5)
    assert hung["failed"] == "stopped after 5 s"
    assert {path.name for path in tmp_path.iterdir()} == {
        "gpu.json", "gpu.txt", "profile-train.txt", "profile-predict.txt", "failed.log"
    }  # fmt: skip


@pytest.mark.slow
def test_a_sweep_writes_points_and_pictures_and_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = [
        *("--out", str(tmp_path), "--size", "32", "--axes", "modalities", "--tasks", "predict", "--repeats", "1"),
        *("--device", "cpu", "--counts"),
    ]
    for counts in ("1", "1,2"):
        command = [sys.executable, str(FOLDER / "sweep.py"), *arguments, counts]
        subprocess.run(command, check=True, capture_output=True)
    points = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    assert [point["modalities"] for point in points] == [1, 2]
    assert (tmp_path / "modalities.png").read_bytes()[:4] == b"\x89PNG"
