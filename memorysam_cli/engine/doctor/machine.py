"""Disks, shared memory, limits and the locale."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from memorysam_cli.engine.doctor.findings import Finding, ok, problem, warning
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import atomic

LITTLE_DISK_GB, NO_DISK_GB = 5, 0.5
LITTLE_SHARED_GB = 1
FEW_FILES = 1024
SHARED = Path("/dev/shm")


def folders() -> Iterator[Finding]:
    """Where memorysam writes: here, the data, and the cache of weights."""
    data = Path(os.environ.get("MEMORYSAM_DATA", "data"))
    yield from _disk("here", Path.cwd(), "start in a folder that you may write, or give --out")
    if data.is_dir():
        yield from _disk("data", data, "give another --data, or set MEMORYSAM_DATA")
    yield from _disk("cache", hub_cache(), "set HF_HOME to a folder that you may write")


def hub_cache() -> Path:
    """Where the Hub's client keeps files, as the environment says."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def shared_memory() -> Iterator[Finding]:
    """What data workers hand images over in; containers often have 64 MB."""
    if not SHARED.is_dir():
        return
    free = shutil.disk_usage(SHARED).free / 1e9
    if free < LITTLE_SHARED_GB:
        remedy = "start the container with --shm-size=8g (or --ipc=host), or train with --set data.workers=0"
        yield warning("shared memory", f"{free:.2f} GB free in {SHARED}", remedy)
    else:
        yield ok("shared memory", f"{free:.1f} GB free")


def limits() -> Iterator[Finding]:
    """How many files a process may have open, and how much memory it may take."""
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
    """The RAM that is free."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 / 1e9 for line in lines if line.endswith("kB")}
    found = f"{sizes.get('MemAvailable', 0):.1f} of {sizes.get('MemTotal', 0):.1f} GB available, {os.cpu_count()} CPUs"
    if sizes.get("MemAvailable", 0) < 2:
        yield warning("memory", found, "close other programs, or use smaller batches and fewer workers")
    else:
        yield ok("memory", found)


def locale() -> Iterator[Finding]:
    """Whether file names and class names can be written as they are."""
    encoding = sys.getfilesystemencoding().lower()
    if encoding.replace("-", "") != "utf8":
        yield warning("encoding", encoding, "export PYTHONUTF8=1, so that names beyond ASCII can be read and shown")
    else:
        yield ok("encoding", encoding)


def _disk(name: str, folder: Path, remedy: str) -> Iterator[Finding]:
    """Whether a folder (or the nearest one above it that exists) can be written, and has room."""
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
