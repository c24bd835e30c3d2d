"""What computes: torch, CUDA, the driver, the GPUs' memory, and the network itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator

from memorysam_cli.engine.doctor.findings import Finding, ok, problem, warning

DRIVER = "nvidia-smi"
ASK = ("--query-gpu=driver_version,name,memory.total", "--format=csv,noheader")
LITTLE_GB = 6
"""Of GPU memory: with less even inference of the larger backbones does not fit."""
BUILD = "install the CUDA build of torch: https://pytorch.org/get-started/locally"


def torch() -> Iterator[Finding]:
    """torch's build, and the devices that it sees."""
    import torch as library

    threads = f"{library.get_num_threads()} threads"
    yield ok("torch build", f"{library.__version__}, {threads}")
    driver = driver_lines()
    if library.cuda.is_available():
        for index in range(library.cuda.device_count()):
            yield from _gpu(index)
    elif library.backends.mps.is_available():
        yield ok("device", "mps (Apple)")
    elif driver and library.version.cuda is None:
        yield problem(
            "CUDA", f"a GPU is there ({driver[0]}), but torch is a CPU build: all would run on the CPU", BUILD
        )
    elif driver:
        yield problem(
            "CUDA",
            f"a GPU is there ({driver[0]}), but torch for CUDA {library.version.cuda} cannot use it",
            "update the driver, or install a torch built for an older CUDA; look at CUDA_VISIBLE_DEVICES, too",
        )
    else:
        yield ok("device", "cpu (no GPU: training the larger backbones takes weeks, the demo minutes)")


def _gpu(index: int) -> Iterator[Finding]:
    import torch as library

    name = f"GPU {index}"
    properties = library.cuda.get_device_properties(index)
    free, total = (amount / 1e9 for amount in library.cuda.mem_get_info(index))
    bf16 = "bf16" if library.cuda.is_bf16_supported() else "no bf16"
    found = f"{properties.name}, {free:.1f} of {total:.1f} GB free, CUDA {library.version.cuda}, {bf16}"
    if total < LITTLE_GB:
        yield warning(name, found, "train with --recipe FILE of backbone tiny and --batch auto; see `memorysam plan`")
    elif free < total / 2:
        yield warning(name, found, "another program holds the rest: look at nvidia-smi, or choose --device cuda:N")
    else:
        yield ok(name, found)


def driver_lines() -> list[str]:
    """What NVIDIA's driver says of each GPU; none without a driver."""
    program = shutil.which(DRIVER)
    if program is None:
        return []
    try:
        asked = subprocess.run([program, *ASK], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return asked.stdout.strip().splitlines() if asked.returncode == 0 else []


def network() -> Iterator[Finding]:
    """That SAM2's classes, PEFT's adapters and our memory compute something finite: nano on two 64 pixel frames."""
    import torch as library

    from memorysam_cli import recipe as recipes
    from memorysam_cli.dataset import DatasetInfo, Modality
    from memorysam_cli.model import weights

    recipe = recipes.parse(
        {
            "name": "doctor",
            "data": {"dataset": "doctor", "modalities": ["img", "depth"], "image_size": 64},
            "model": {"backbone": "nano", "base_weights": "random"},
            "spmm": {"variant": "off", "weight": 0},
            "optim": {"lr": 1e-4},
            "train": {"epochs": 1},
        },
        where="doctor",
    )
    info = DatasetInfo(
        name="doctor", title="Doctor", classes=("a", "b"), palette=((0, 0, 0), (9, 9, 9)),
        modalities=(Modality(name="img", kind="rgb"), Modality(name="depth", kind="depth")),
    )  # fmt: skip
    begun = time.monotonic()
    model = weights.build_for_measuring(recipe, info)
    model.eval()
    with library.inference_mode():
        logits = model.logits([library.zeros(1, 3, 64, 64) for _ in info.modalities])
    if logits.shape[:2] == (1, 2) and bool(logits.isfinite().all()):
        yield ok("network", f"nano segments two 64-pixel frames ({time.monotonic() - begun:.1f} s with its making)")
    else:
        yield problem("network", "nano's result is not finite", "reinstall torch; if that does not help, report a bug")
