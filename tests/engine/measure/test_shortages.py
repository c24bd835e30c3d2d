"""Running out of memory is one line with the numbers and the levers."""

from __future__ import annotations

import pytest
import torch

from memorysam_cli.engine import runtime
from memorysam_cli.errors import EnvironmentFault, WeightsError, environment_fault, is_out_of_memory, shortage
from memorysam_cli.text import size

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.69 GiB of which 1 GiB is free. "
    "Of the allocated memory 20 GiB is allocated by PyTorch. If reserved but unallocated memory is large try setting …"
)
CPU_DEVICE = torch.device("cpu")


def real() -> Exception:
    """What torch says on a CPU."""
    try:
        torch.empty(2**60)
    except RuntimeError as fault:
        return fault
    raise AssertionError("an exabyte was found")


def test_the_line_has_device_request_peak_free_and_total_and_ends_with_6() -> None:
    with pytest.raises(EnvironmentFault) as told, runtime.explained(CPU_DEVICE, levers="use less"):
        raise torch.OutOfMemoryError(CUDA)
    have = runtime.capacity(CPU_DEVICE)
    line = str(told.value)
    assert told.value.exit_code == 6 and "\n" not in line
    assert line.startswith("out of memory on cpu (CUDA out of memory. Tried to allocate 2.00 GiB; peak ")
    assert line.endswith(f" free of {size(have.total)}); use less")
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    "fault", [MemoryError(), torch.OutOfMemoryError(CUDA), real()], ids=lambda fault: type(fault).__name__
)
def test_every_way_of_saying_so_is_understood(fault: Exception) -> None:
    assert is_out_of_memory(fault)
    with pytest.raises(EnvironmentFault), runtime.explained(CPU_DEVICE, levers=lambda: "use less"):
        raise fault
    told = environment_fault(fault)
    assert told is not None and told.exit_code == 6 and shortage(fault) in str(told)


def test_what_was_asked_for_is_kept_and_the_advice_behind_it_is_not() -> None:
    assert shortage(torch.OutOfMemoryError(CUDA)) == "CUDA out of memory. Tried to allocate 2.00 GiB"
    assert shortage(MemoryError()) == "MemoryError"
    assert shortage(real()).endswith("bytes")


def test_other_faults_and_our_own_pass_as_they_are() -> None:
    for fault in (ValueError("4"), WeightsError("x.pt: out of memory is its name")):
        with pytest.raises(type(fault)) as told, runtime.explained(CPU_DEVICE, levers="use less"):
            raise fault
        assert told.value is fault


def test_a_device_that_cannot_be_asked_does_not_hide_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: torch.device) -> runtime.Capacity:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(runtime, "capacity", broken)
    with pytest.raises(EnvironmentFault, match="the device says no more"), runtime.explained(CPU_DEVICE, levers="x"):
        raise MemoryError
