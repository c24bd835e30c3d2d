"""``memorysam doctor``: problems of this machine, and how to fix them.

Each check returns its findings. Checks run one after another; a check that crashes is a finding, too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from memorysam_cli.engine import surroundings
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import atomic
from memorysam_cli.text import counted

State = Literal["ok", "warning", "problem"]
OLDEST_PYTHON = (3, 11)
INSTALL = "pip install --upgrade memorysam"
IMPORT_PATIENCE_S = 60
DRIVER = "nvidia-smi"
DRIVER_QUERY = ("--query-gpu=driver_version,name,memory.total", "--format=csv,noheader")
LITTLE_GPU_GB = 6
"""GPU memory: with less, even inference of the larger backbones does not fit."""
CUDA_BUILD = "install the CUDA build of torch: https://pytorch.org/get-started/locally"
LITTLE_MEMORY_GB = 2
OVERLOAD = 1.5
"""Processes per core that want to compute, over the last minute. With more, a run is several times slower."""
LITTLE_DISK_GB, NO_DISK_GB = 5, 0.5
LITTLE_SHARED_GB = 1
FEW_FILES = 1024
SHARED = Path("/dev/shm")
HUB_PATIENCE_S = 4.0
HUB = "Hugging Face Hub"
FETCH_AHEAD = "fetch weights ahead where there is a network (memorysam weights fetch --all) and carry HF_HOME over"


@dataclass(frozen=True)
class Finding:
    """A checked property, and the result."""

    name: str
    state: State
    found: str
    remedy: str = ""
    """What to do; empty if everything is fine."""


Check = Callable[[], Iterable[Finding]]


def ok(name: str, found: str) -> Finding:
    """Nothing to do."""
    return Finding(name, "ok", found)


def warning(name: str, found: str, remedy: str) -> Finding:
    """Something will be slow, or a feature that not everybody needs will not work."""
    return Finding(name, "warning", found, remedy)


def problem(name: str, found: str, remedy: str) -> Finding:
    """Commands will fail."""
    return Finding(name, "problem", found, remedy)


def python() -> Iterator[Finding]:
    """The interpreter, and whether it runs in a virtual environment."""
    found = f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})"
    if sys.version_info < OLDEST_PYTHON:
        yield problem("Python", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    else:
        yield ok("Python", found)
    if sys.prefix == sys.base_prefix:
        yield warning(
            "environment",
            "packages are shared with the whole system",
            "python3 -m venv .venv && .venv/bin/pip install memorysam, so that other programs' versions do not matter",
        )


def packages() -> Iterator[Finding]:
    """Every package that memorysam requires, with a version that it supports."""
    for text in metadata.requires("memorysam") or ():
        wanted = Requirement(text)
        # for an extra, or for another platform
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name, bounds = wanted.name, wanted.specifier
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield problem(name, f"is missing (needs {bounds})", INSTALL)
            continue
        if fits(version, bounds):
            yield ok(name, version)
        else:
            yield problem(name, f"{version}, needs {bounds}", f"pip install '{name}{bounds}'")


def fits(version: str, bounds: SpecifierSet) -> bool:
    """Whether a version is within bounds; a suffix such as ``+cpu`` or ``rc1`` does not count."""
    return bounds.contains(Version(version).base_version)


def opencv() -> Iterator[Finding]:
    """That OpenCV is installed once, and without a GUI."""
    others = [name for name in ("opencv-python", "opencv-contrib-python") if _is_installed(name)]
    if others:
        yield warning(
            "OpenCV",
            f"{', '.join(others)} overwrites opencv-python-headless",
            f"pip uninstall -y {' '.join(others)} && pip install --force-reinstall opencv-python-headless: "
            "the one with windows needs libGL, which servers lack",
        )


def torchvision() -> Iterator[Finding]:
    """Whether torchvision is absent, working or broken; tested in a separate process, because a broken one may
    crash."""
    if not _is_installed("torchvision"):
        yield ok("torchvision", "absent (memorysam does not need it)")
        return
    version = metadata.version("torchvision")
    asked = subprocess.run(
        [sys.executable, "-c", "import torchvision"],
        capture_output=True,
        text=True,
        timeout=IMPORT_PATIENCE_S,
        check=False,
    )
    if asked.returncode == 0:
        yield ok("torchvision", f"{version} (memorysam does not need it)")
        return
    lines = asked.stderr.strip().splitlines()
    yield warning(
        "torchvision",
        f"{version} is broken ({lines[-1] if lines else f'exit code {asked.returncode}'})",
        "memorysam works around it; to fix it for other programs: pip uninstall torchvision, or install the version "
        "that belongs to your torch",
    )


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def torch_build() -> Iterator[Finding]:
    """torch's build, and its devices."""
    import torch as library

    threads = f"{counted(library.get_num_threads(), 'thread')}"
    yield ok("torch build", f"{library.__version__}, {threads}")
    driver = driver_lines()
    if library.cuda.is_available():
        for index in range(library.cuda.device_count()):
            yield from _gpu(index)
    elif library.backends.mps.is_available():
        yield ok("device", "mps (Apple)")
    elif driver and library.version.cuda is None:
        yield problem(
            "CUDA", f"there is a GPU ({driver[0]}), but torch is a CPU build: all would run on the CPU", CUDA_BUILD
        )
    elif driver:
        yield problem(
            "CUDA",
            f"there is a GPU ({driver[0]}), but torch for CUDA {library.version.cuda} cannot use it",
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
    if total < LITTLE_GPU_GB:
        yield warning(name, found, "train with --recipe FILE of backbone tiny and --batch auto; see `memorysam plan`")
    elif free < total / 2:
        yield warning(name, found, "another program holds the rest: look at nvidia-smi, or choose --device cuda:N")
    else:
        yield ok(name, found)


def driver_lines() -> list[str]:
    """The lines of NVIDIA's driver on each GPU; none without a driver."""
    program = shutil.which(DRIVER)
    if program is None:
        return []
    try:
        asked = subprocess.run([program, *DRIVER_QUERY], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return asked.stdout.strip().splitlines() if asked.returncode == 0 else []


def network() -> Iterator[Finding]:
    """That SAM2's classes, PEFT's adapters and our memory compute finite values: nano on two 64 pixel frames."""
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
        yield ok("network", f"nano segments two 64-pixel frames ({time.monotonic() - begun:.1f} s including setup)")
    else:
        yield problem("network", "nano's result is not finite", "reinstall torch; if that does not help, report a bug")


def disks() -> Iterator[Finding]:
    """The folders in which memorysam writes: here, the data, and the cache of weights."""
    data = Path(os.environ.get("MEMORYSAM_DATA", "data"))
    yield from _disk("here", Path.cwd(), "start in a folder that you may write, or give --out")
    if data.is_dir():
        yield from _disk("data", data, "give another --data, or set MEMORYSAM_DATA")
    yield from _disk("cache", hub_cache(), "set HF_HOME to a folder that you may write")


def hub_cache() -> Path:
    """The cache folder of the Hub's client, from the environment."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def shared_memory() -> Iterator[Finding]:
    """Shared memory, which processes with a GPU each (NCCL) and Ray use; data workers need none. Containers often have
    64 MB."""
    if not SHARED.is_dir():
        return
    import torch as library

    free = shutil.disk_usage(SHARED).free / 1e9
    found = f"{free:.2f} GB free in {SHARED}"
    if free >= LITTLE_SHARED_GB:
        yield ok("shared memory", f"{free:.1f} GB free")
    elif library.cuda.device_count() > 1:
        remedy = "start the container with --shm-size=1g (or --ipc=host): several GPUs train through it"
        yield warning("shared memory", found, remedy)
    else:
        yield ok("shared memory", f"{found} (enough: data workers do without it)")


def limits() -> Iterator[Finding]:
    """Limits of open files and of memory for a process."""
    if sys.platform == "win32":
        return
    import resource

    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        may = "" if most == resource.RLIM_INFINITY or most > files else " (ask an administrator for more)"
        yield warning("open files", f"at most {files}", f"ulimit -n 4096{may}")
    else:
        yield ok("open files", "no limit" if files == resource.RLIM_INFINITY else f"at most {files:,}")
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        yield warning(
            "memory limit", f"ulimit -v {space // 1024}", "ulimit -v unlimited: torch asks for much address space"
        )


def memory() -> Iterator[Finding]:
    """Free RAM, of the machine or its container."""
    room = surroundings.memory()
    found = f"{room.free / 1e9:.1f} of {room.total / 1e9:.1f} GB available, {os.cpu_count()} CPUs"
    if room.free < LITTLE_MEMORY_GB * 1e9:
        yield warning("memory", found, "close other programs, or use smaller batches and fewer workers")
    else:
        yield ok("memory", found)


def load() -> Iterator[Finding]:
    """Whether other programs compute here. Threads that wait for a core make each step as slow as the slowest
    thread."""
    if not hasattr(os, "getloadavg"):
        return
    cores = os.cpu_count() or 1  # all cores, because the load is that of the whole machine
    waiting, _, _ = os.getloadavg()
    found = f"{waiting:.1f} processes compete for {counted(cores, 'core')}"
    if waiting > OVERLOAD * cores:
        remedy = (
            "end what else computes here (top shows it), or leave it its cores: OMP_NUM_THREADS=N memorysam …, with N "
            "the cores that are free"
        )
        yield warning("load", found, remedy)
    else:
        yield ok("load", found)


def encoding() -> Iterator[Finding]:
    """Whether the terminal's encoding can print file names and class names."""
    encoding = sys.getfilesystemencoding().lower()
    if encoding.replace("-", "") != "utf8":
        yield warning("encoding", encoding, "export PYTHONUTF8=1, so that names beyond ASCII can be read and shown")
    else:
        yield ok("encoding", encoding)


def _disk(name: str, folder: Path, remedy: str) -> Iterator[Finding]:
    """Whether a folder (or its nearest existing parent) is writable, and has space."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        atomic.refuse_unwritable(place)
    except MemorySamError as fault:
        yield problem(f"disk ({name})", f"{folder}: {fault}", remedy)
        return
    free = shutil.disk_usage(place).free / 1e9
    found = f"{free:.1f} GB free in {folder}"
    if free < NO_DISK_GB:
        yield problem(f"disk ({name})", found, f"make room, or {remedy}")
    elif free < LITTLE_DISK_GB:
        yield warning(f"disk ({name})", found, f"make room, or {remedy}: a checkpoint of the large backbone takes 1 GB")
    else:
        yield ok(f"disk ({name})", found)


def hub() -> Iterator[Finding]:
    """One request for the Hub's front page, without a token; none in offline mode."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        yield ok(HUB, "offline mode (HF_HUB_OFFLINE): only cached weights are used")
        return
    address = constants.ENDPOINT
    if urlsplit(address).scheme not in {"http", "https"}:
        yield warning(HUB, f"HF_ENDPOINT={address} is not an address", "unset HF_ENDPOINT, or give https://…")
        return
    try:
        request = urllib.request.Request(address, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_PATIENCE_S) as reply:
            yield ok(HUB, f"{address} answers ({reply.status})")
    except urllib.error.HTTPError as reply:  # it answers: a missing page is not a network problem
        if reply.code < 500:
            yield ok(HUB, f"{address} answers ({reply.code})")
        else:
            yield warning(HUB, f"{address} answers {reply.code}", "try again later")
    except (OSError, ValueError) as fault:
        reason = fault.reason if isinstance(fault, urllib.error.URLError) else fault
        yield warning(
            HUB,
            f"{address} cannot be reached ({reason})",
            f"check the network, HTTPS_PROXY and HF_ENDPOINT; without any: {FETCH_AHEAD}",
        )


CHECKS: Mapping[str, Check] = {
    "Python": python,
    "packages": packages,
    "OpenCV": opencv,
    "torchvision": torchvision,
    "torch": torch_build,
    "network": network,
    "memory": memory,
    "load": load,
    "disk": disks,
    "shared memory": shared_memory,
    "limits": limits,
    "encoding": encoding,
    "Hugging Face Hub": hub,
}
"""By the name that a crashed check goes by."""


def examine(checks: Mapping[str, Check] = CHECKS) -> Iterator[Finding]:
    """The findings, each as soon as it is there."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as fault:
            lines = str(fault).splitlines()
            reason = f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__
            yield problem(name, f"cannot be checked ({reason})", "reinstall: pip install --force-reinstall memorysam")
