"""How much memory there is, on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from memorysam_cli.engine import diagnosis, runtime
from memorysam_cli.engine import surroundings as machines
from memorysam_cli.engine.surroundings import Capacity

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 32 GB, 30 of them free; its control group is to be written."""
    sizes = {"MemTotal": 32000000, "MemFree": 1, "MemAvailable": 30000000, "Shmem": 0}
    sizes |= dict.fromkeys(("Buffers", "Cached", "Active", "Inactive"), 0)
    (tmp_path / "meminfo").write_text("".join(f"{name}: {size} kB\n" for name, size in sizes.items()))
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    monkeypatch.setattr(machines, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machines, "_CGROUP", tmp_path)
    return tmp_path


def limit(machine: Path, most: str, *, used: int, **cached: int) -> None:
    (machine / "memory.max").write_text(f"{most}\n")
    (machine / "memory.current").write_text(f"{used}\n")
    (machine / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in cached.items()))


def test_a_machine_without_a_limit_says_what_is_available(machine: Path) -> None:
    assert runtime.capacity(CPU) == Capacity(32_768_000_000, 30_720_000_000)
    limit(machine, "max", used=10**9)
    assert runtime.capacity(CPU) == Capacity(32_768_000_000, 30_720_000_000)


def test_a_container_has_what_it_may_use(machine: Path) -> None:
    limit(machine, str(8 * 10**9), used=3 * 10**9, anon=3 * 10**9)
    assert runtime.capacity(CPU) == Capacity(8 * 10**9, 5 * 10**9)


def test_files_that_were_read_in_a_container_are_no_use_of_its_memory(machine: Path) -> None:
    """A data set that was looked at fills a container's memory, and gives way to whoever needs it."""
    cached = {"active_file": 3 * 10**9, "inactive_file": 10**9, "slab_reclaimable": 5 * 10**8}
    limit(machine, str(8 * 10**9), used=8 * 10**9, anon=35 * 10**8, **cached)
    assert runtime.capacity(CPU) == Capacity(8 * 10**9, 45 * 10**8)


def test_a_container_that_does_not_say_what_is_cached_has_what_is_left(machine: Path) -> None:
    limit(machine, str(8 * 10**9), used=3 * 10**9)
    (machine / "memory.stat").unlink()
    assert runtime.capacity(CPU).free == 5 * 10**9


def test_a_batch_job_has_what_the_group_of_its_own_or_one_around_it_may_use(machine: Path) -> None:
    """Without a container's name space a job sees the whole machine's groups, and is deep within them."""
    (machine / "cgroup").write_text("0::/slurm/job_7/step_0\n")
    step = machine / "slurm" / "job_7" / "step_0"
    step.mkdir(parents=True)
    limit(step, "max", used=10**9)
    limit(step.parent, str(16 * 10**9), used=12 * 10**9)
    limit(step.parent.parent, str(20 * 10**9), used=19 * 10**9)
    assert runtime.capacity(CPU) == Capacity(16 * 10**9, 10**9)


def test_a_control_group_of_version_1_counts_too(machine: Path) -> None:
    (machine / "cgroup").write_text("4:memory:/box/7\n3:cpu,cpuacct:/other\n0::/\n")
    box = machine / "memory" / "box" / "7"
    box.mkdir(parents=True)
    for folder, most in ((box, 8 * 10**9), (machine / "memory", 2**63 - 4096)):
        (folder / "memory.limit_in_bytes").write_text(f"{most}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{6 * 10**9}\n")
    (box / "memory.stat").write_text("active_file 1\ntotal_active_file 2000000000\ntotal_inactive_file 500000000\n")
    assert runtime.capacity(CPU) == Capacity(8 * 10**9, 4_500_000_000)


def test_the_doctor_sees_the_memory_that_a_plan_has(machine: Path) -> None:
    limit(machine, str(8 * 10**9), used=3 * 10**9, anon=3 * 10**9)
    (found,) = diagnosis.memory()
    assert found.state == "ok" and found.found.startswith("5.0 of 8.0 GB available")
    limit(machine, str(4 * 10**9), used=3 * 10**9, anon=3 * 10**9)
    (found,) = diagnosis.memory()
    assert found.state == "warning" and "1.0 of 4.0 GB" in found.found
