"""Run by test_triton_pixels: the kernels against the slabs in Triton's interpreter, or their compilation.

TRITON_INTERPRET=1 triton_without_gpu.py compare; triton_without_gpu.py compile
"""

from __future__ import annotations

import sys
from itertools import product

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from memorysam_cli.losses import pixels, triton_pixels

SIZES = [(1, 3, 3, 5), (2, 2, 1, 1), (1, 2, 2, 19)]
CONSTANTS = {"stride": 4, "ignore": 255, "block": triton_pixels.BLOCK}
POINTERS = {"_forward": ["fp32", "i64", "fp32", "fp32"], "_backward": ["fp32", "i64", "fp32", "fp32", "fp32"]}


def compare(shape: tuple[int, ...], stride: int) -> None:
    """Losses and gradient of both forms."""
    generator = torch.Generator().manual_seed(0)
    batch, classes, h, w = shape
    logits = 4 * torch.randn(shape, generator=generator)
    logits[0, 0, 0, 0] = 200.0  # its exponential is beyond float32
    label = torch.randint(0, classes, (batch, h * stride, w * stride), generator=generator)
    label[torch.rand(label.shape, generator=generator) < 0.3] = 255
    weights = torch.randn(label.shape, generator=generator)
    found = []
    for function in (pixels.pixel_losses, lambda *both: triton_pixels.pixel_losses(*both, stride)):
        leaf = logits.clone().requires_grad_()
        losses = function(leaf, label)
        losses.backward(weights)
        found.append((losses.detach(), leaf.grad))
    # PyTorch finds a pixel's place in float32, which is not exact for a third.
    tolerance = 1e-3 if stride == 3 else 1e-5
    torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)


def compile_for(capability: int, kernel: str) -> None:
    """To machine code, for a GPU that need not be there."""
    function = getattr(triton_pixels, kernel)
    pointers = dict(zip(function.arg_names, POINTERS[kernel], strict=False))
    signature = {name: f"*{pointers[name]}" if name in pointers else "i32" for name in function.arg_names}
    signature |= dict.fromkeys(CONSTANTS, "constexpr")
    constants = {(function.arg_names.index(name),): value for name, value in CONSTANTS.items()}
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(ASTSource(function, signature, constants), target=target, options=triton_pixels.OPTIONS)
    assert compiled.asm["cubin"]


if sys.argv[1] == "compare":
    triton_pixels.BLOCK = 16  # so that a row of 19 cells takes two programs
    cases = list(product(SIZES, (2, 3, 4)))
    for case in cases:
        compare(*case)
    print(f"{len(cases)} cases equal")
else:
    jobs = list(product((80, 90, 120), POINTERS))
    for job in jobs:
        compile_for(*job)
    print(f"{len(jobs)} kernels compiled")
