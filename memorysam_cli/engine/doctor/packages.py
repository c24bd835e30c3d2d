"""Python and the packages that memorysam needs."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from memorysam_cli.engine.doctor.findings import Finding, ok, problem, warning

OLDEST_PYTHON = (3, 11)
INSTALL = "pip install --upgrade memorysam"
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)\s*(?P<bounds>[^;\[]*)(?P<marker>;.*)?$")
_BOUND = re.compile(r"(?P<how>==|>=|<=|<|>|!=|~=)\s*(?P<version>[\w.]+)")
PATIENCE_S = 60


def python() -> Iterator[Finding]:
    """The interpreter, and whether it has an environment of its own."""
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


def requirements() -> Iterator[Finding]:
    """Every package that memorysam asks for, at a version that it asks for."""
    for text in metadata.requires("memorysam") or ():
        parts = _REQUIREMENT.match(text)
        if parts is None or parts["marker"]:  # an extra's, or another platform's
            continue
        name, bounds = parts["name"], parts["bounds"].strip()
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield problem(name, f"is missing (needs {bounds})", INSTALL)
            continue
        if all(fits(version, bound["how"], bound["version"]) for bound in _BOUND.finditer(bounds)):
            yield ok(name, version)
        else:
            yield problem(name, f"{version}, needs {bounds}", f"pip install '{name}{bounds}'")


def fits(version: str, how: str, bound: str) -> bool:
    """Whether a version is within a bound; what follows the numbers, such as ``+cpu``, does not count."""
    one, other = _numbers(version), _numbers(bound)
    length = max(len(one), len(other))
    one, other = (each + (0,) * (length - len(each)) for each in (one, other))
    return {
        "==": one == other, "!=": one != other, ">=": one >= other, "<=": one <= other, "<": one < other,
        ">": one > other, "~=": one >= other,
    }[how]  # fmt: skip


def opencv() -> Iterator[Finding]:
    """That OpenCV is there once, and without windows."""
    others = [name for name in ("opencv-python", "opencv-contrib-python") if _is_installed(name)]
    if others:
        yield warning(
            "OpenCV",
            f"{', '.join(others)} lies over opencv-python-headless",
            f"pip uninstall -y {' '.join(others)} && pip install --force-reinstall opencv-python-headless: "
            "the one with windows needs libGL, which servers lack",
        )


def torchvision() -> Iterator[Finding]:
    """Whether torchvision is absent, sound or broken; asked of a process of its own, for a broken one may crash."""
    if not _is_installed("torchvision"):
        yield ok("torchvision", "absent (memorysam does not need it)")
        return
    version = metadata.version("torchvision")
    asked = subprocess.run(
        [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if asked.returncode == 0:
        yield ok("torchvision", f"{version} (memorysam does not need it)")
        return
    lines = asked.stderr.strip().splitlines()
    yield warning(
        "torchvision",
        f"{version} is broken ({lines[-1] if lines else f'exit code {asked.returncode}'})",
        "memorysam works around it; to mend it for other programs: pip uninstall torchvision, or install the version "
        "that belongs to your torch",
    )


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release[0].split(".")) if release else (0,)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
