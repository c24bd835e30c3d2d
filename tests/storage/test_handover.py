"""One item between two processes: in one block of memory, or through the pipe where there is none."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memorysam_cli.storage import handover

LARGE = 100_000
"""Numbers of four bytes: more than the pipe's own buffer holds."""


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        yield ours, theirs


def descriptors() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()}


def no_block(*_: object) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def handed_over(pipe: tuple[Connection, Connection], value: Any) -> Any:
    """What arrives; sent by a thread, for what goes through the pipe waits for its reader."""
    ours, theirs = pipe
    sender = threading.Thread(target=handover.send, args=(theirs, value))
    sender.start()
    found = handover.receive(ours)
    sender.join(60)
    return found


def tensors() -> dict[str, Tensor]:
    ramp = torch.arange(LARGE, dtype=torch.float32)
    return {
        "plain": ramp,
        "a part": ramp[7:90],
        "turned": ramp.reshape(50, -1).t(),
        "channels last": ramp.reshape(1, 4, 50, 500).to(memory_format=torch.channels_last),
        "repeated": torch.tensor([1.0, 2.0]).expand(3, 2),
        "a number": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "bool": torch.tensor([True, False]),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "label": torch.full((3, 5), 255),
    }


WAYS = ["block", "no descriptor", "no memory", "no such call"]


@pytest.mark.parametrize("way", WAYS)
def test_what_arrives_is_what_was_sent_also_its_strides(
    way: str, pipe: tuple[Connection, Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = descriptors()
    if way == "no descriptor":
        monkeypatch.setattr(os, "memfd_create", no_block)
    if way == "no memory":
        monkeypatch.setattr(os, "pwrite", full)
    if way == "no such call":
        monkeypatch.setattr(handover, "_HAS_BLOCKS", False)
    sent = tensors()
    array = np.arange(LARGE, dtype=np.uint16).reshape(100, -1)
    found = handed_over(pipe, {"tensors": sent, "again": sent["plain"], "array": array, "words": ("a", None)})
    assert (found["words"], found["tensors"].keys()) == (("a", None), sent.keys())
    np.testing.assert_array_equal(found["array"], array)
    for name, tensor in sent.items():
        arrived = found["tensors"][name]
        torch.testing.assert_close(arrived, tensor, rtol=0, atol=0)
        if name not in {"a part", "repeated"}:  # of those only what is seen arrives
            assert arrived.stride() == tensor.stride(), name
        arrived.add_(1) if arrived.is_floating_point() else None  # may be written to
    assert found["again"] is found["tensors"]["plain"]  # one copy for both
    assert len(descriptors() - before) == (way == "block")  # one for all; the mapping's, until the tensors are gone
    del found, arrived
    assert descriptors() == before


def test_a_value_that_cannot_be_pickled_sends_nothing(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe
    with pytest.raises((AttributeError, TypeError), match=r"local object|pickle"):
        handover.send(theirs, [torch.zeros(LARGE), lambda: None])
    assert not ours.poll()


def test_without_a_descriptor_left_the_reader_is_told_so(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe
    handover.send(theirs, torch.zeros(LARGE))
    # So many that no number below the highest is free.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(descriptors())
    holes = [os.open(os.devnull, os.O_RDONLY) for _ in range(used)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(holes) + 1, hard))
        with pytest.raises(OSError, match="Too many open files") as caught:
            handover.receive(ours)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for hole in holes:
            os.close(hole)
    assert caught.value.errno == errno.EMFILE


def test_a_sender_that_is_gone_is_the_end(pipe: tuple[Connection, Connection]) -> None:
    ours, theirs = pipe
    theirs.close()
    with pytest.raises((EOFError, ConnectionError)):
        handover.receive(ours)


def test_a_block_is_no_file_that_anybody_sees(pipe: tuple[Connection, Connection]) -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    found = handed_over(pipe, torch.ones(LARGE))
    assert not Path("/dev/shm").is_dir() or set(Path("/dev/shm").iterdir()) <= before
    assert float(found.sum()) == LARGE
