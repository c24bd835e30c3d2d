"""How much memory there is, on a machine and in a container."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memorysam_cli.engine import memory
from memorysam_cli.engine.memory import Capacity

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 32 GB, 30 of them free; its control group is to be written."""
    (tmp_path / "meminfo").write_text("MemTotal: 32000000 kB\nMemFree: 1 kB\nMemAvailable: 30000000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    return tmp_path


def limit(machine: Path, most: str, *, used: int, **cached: int) -> None:
    (machine / "memory.max").write_text(f"{most}\n")
    (machine / "memory.current").write_text(f"{used}\n")
    (machine / "memory.stat").write_text("".join(f"{name} {count}\n" for name, count in cached.items()))


def test_a_machine_without_a_limit_says_what_is_available(machine: Path) -> None:
    assert memory.capacity(CPU) == Capacity(32_768_000_000, 30_720_000_000)
    limit(machine, "max", used=10**9)
    assert memory.capacity(CPU) == Capacity(32_768_000_000, 30_720_000_000)


def test_a_container_has_what_it_may_use(machine: Path) -> None:
    limit(machine, str(8 * 10**9), used=3 * 10**9, anon=3 * 10**9)
    assert memory.capacity(CPU) == Capacity(8 * 10**9, 5 * 10**9)


def test_files_that_were_read_in_a_container_are_no_use_of_its_memory(machine: Path) -> None:
    """A data set that was looked at fills a container's memory, and gives way to whoever needs it."""
    cached = {"active_file": 3 * 10**9, "inactive_file": 10**9, "slab_reclaimable": 5 * 10**8}
    limit(machine, str(8 * 10**9), used=8 * 10**9, anon=35 * 10**8, **cached)
    assert memory.capacity(CPU) == Capacity(8 * 10**9, 45 * 10**8)


def test_a_container_that_does_not_say_what_is_cached_has_what_is_left(machine: Path) -> None:
    limit(machine, str(8 * 10**9), used=3 * 10**9)
    (machine / "memory.stat").unlink()
    assert memory.capacity(CPU).free == 5 * 10**9


def test_a_group_above_ours_has_its_say(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a name space of its own a process stands deeper down; the narrowest of all limits counts."""
    (machine / "own").write_text("0::/jobs/mine\n")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", machine / "own")
    (machine / "jobs" / "mine").mkdir(parents=True)
    limit(machine / "jobs", str(6 * 10**9), used=4 * 10**9)
    limit(machine / "jobs" / "mine", "max", used=10**9)
    assert memory.machine() == Capacity(6 * 10**9, 2 * 10**9)


def test_the_older_kind_of_control_groups_is_understood(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "own").write_text("12:cpu:/x\n4:memory:/docker/a\n0::/\n")
    monkeypatch.setattr(memory, "_OWN_CGROUPS", machine / "own")
    group = machine / "memory"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(f"{8 * 10**9}\n")
    (group / "memory.usage_in_bytes").write_text(f"{5 * 10**9}\n")
    (group / "memory.stat").write_text(f"total_active_file {10**9}\ntotal_inactive_file {10**9}\n")
    assert memory.machine() == Capacity(8 * 10**9, 5 * 10**9), "the host's path is not seen here: the root counts"
