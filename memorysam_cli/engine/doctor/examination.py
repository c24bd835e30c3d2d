"""All the checks, one after the other; one that crashes is a finding, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memorysam_cli.engine.doctor import devices, hub, machine, packages
from memorysam_cli.engine.doctor.findings import Check, Finding, problem

CHECKS: Mapping[str, Check] = {
    "Python": packages.python,
    "packages": packages.requirements,
    "OpenCV": packages.opencv,
    "torchvision": packages.torchvision,
    "torch": devices.torch,
    "network": devices.network,
    "memory": machine.memory,
    "disk": machine.folders,
    "shared memory": machine.shared_memory,
    "limits": machine.limits,
    "encoding": machine.locale,
    "Hugging Face Hub": hub.reachable,
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
