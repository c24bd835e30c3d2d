"""Two gloo processes: the same prototypes, gradients and counts as one process with all the data."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memorysam_cli.data.manifest import Manifest
from memorysam_cli.engine import runtime
from memorysam_cli.engine.evaluation.scoring import evaluate
from memorysam_cli.model import load

SCRIPT = Path(__file__).with_name("two_processes.py")


def script() -> Any:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_processes_are_one(rendered: Manifest, tmp_path: Path) -> None:
    answer, run = tmp_path / "answer.json", tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finished = subprocess.run(
        [*launch, str(SCRIPT), str(rendered.root), str(run), str(answer)],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    found = json.loads(answer.read_text())
    assert found["world"] == 2
    assert found["steps"] == len(rendered.of_split("train")) // 6
    for variant, wanted in ((v, script().prototype_gradient(v, rank=0, world=1)) for v in ("reference", "paper")):
        assert wanted["losses"][1] > 0
        for key, value in wanted.items():
            torch.testing.assert_close(
                torch.tensor(found["spmm"][variant][key]),
                torch.tensor(value),
                rtol=1e-5,
                atol=1e-7,
                msg=f"{variant} {key}",
            )
    single = runtime.make_accelerator(torch.device("cpu"), precision="fp32")
    alone_learned = torch.tensor(script().lessons(rendered, single))
    torch.testing.assert_close(torch.tensor(found["lessons"]), alone_learned, rtol=1e-4, atol=1e-6)
    model = load(run / "checkpoints" / "last.safetensors")
    alone = evaluate(
        model, rendered, scenes=rendered.of_split("val"), modalities=model.card.modalities,
        image_size=64, device="cpu", batch=1, workers=0,
    )  # fmt: skip
    torch.testing.assert_close(torch.tensor(found["confusion"]), alone.confusions, rtol=0, atol=0)
