"""The GPU kernels where there is no GPU: run by Triton's interpreter, and compiled for some GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("triton_without_gpu.py")


@pytest.mark.parametrize(("task", "answer"), [("compare", "9 cases equal"), ("compile", "6 kernels compiled")])
def test_the_kernels_hold_without_a_gpu(task: str, answer: str, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    # The interpreter is chosen as Triton is imported, so it has a process of its own.
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": str(int(task == "compare"))}
    finished = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), task],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert finished.stdout.strip() == answer


@pytest.mark.gpu
def test_on_a_gpu_the_kernels_equal_the_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    from memorysam_cli.losses.pixels import pixel_losses

    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(5)
    logits = (4 * torch.randn(2, 25, 64, 48, generator=generator)).cuda()
    label = torch.randint(0, 25, (2, 256, 192), generator=generator).cuda()
    label[:, :40] = 255
    found = []
    for choice in ("0", "1", "1"):
        monkeypatch.setenv("MEMORYSAM_TRITON", choice)
        leaf = logits.clone().requires_grad_()
        losses = pixel_losses(leaf, label)
        losses.backward(torch.linspace(-1, 2, label.numel(), device="cuda").view(label.shape))
        assert leaf.grad is not None
        found.append((losses.detach(), leaf.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(first, again) for first, again in zip(found[1], found[2], strict=True))
