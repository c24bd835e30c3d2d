"""Processes that fail, and what the others hear of it; without a network, so that it takes seconds."""

from __future__ import annotations

import pytest

from ...forked import Program
from .test_ways import environment, free_port

PROGRAM = """
import faulthandler, os, sys, time
faulthandler.dump_traceback_later(40)  # one that hangs says where
from memorysam_cli.engine import processes
from memorysam_cli.errors import DataError, MemorySamError
rank, ends, is_waited_for = int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2] == "True"
try:
    with processes.side_by_side() as peers:
        if rank == ends:
            if is_waited_for:
                time.sleep(0.5)  # the others have come to their end, and wait
            if sys.argv[3] == "killed":
                os._exit(9)
            if sys.argv[3] == "interrupted":
                raise KeyboardInterrupt
            raise DataError("a scene")
        while not is_waited_for:
            time.sleep(0.1)
            peers.notice()
        peers.wait_for_all()
except MemorySamError as fault:
    print(fault)
    sys.exit(fault.exit_code)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(
    ("world", "ends", "is_waited_for", "how"),
    [
        (2, 0, True, "fails"),
        (2, 0, False, "fails"),
        pytest.param(2, 1, True, "fails", marks=pytest.mark.slow),
        (3, 1, True, "fails"),
        pytest.param(2, 1, True, "killed", marks=pytest.mark.slow),
        (3, 1, True, "killed"),
        pytest.param(3, 1, False, "killed", marks=pytest.mark.slow),
        (3, 0, False, "killed"),
        (3, 2, True, "interrupted"),
    ],
    ids=str,
)
def test_one_that_ends_early_is_heard_of_at_once(world: int, ends: int, is_waited_for: bool, how: str) -> None:
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        Program(PROGRAM, str(ends), str(is_waited_for), how, environment=environment(**several, RANK=str(rank)))
        for rank in range(world)
    ]
    ended = [each.end() for each in started]
    codes, said = [each.returncode for each in ended], [each.stdout for each in ended]
    complained = [each.stderr for each in ended]
    if how == "killed":
        assert codes == [9 if rank == ends else 6 for rank in range(world)], complained
        assert all(f"process {ends} of this run is lost" in said[rank] for rank in range(world) if rank != ends), said
    elif how == "interrupted":
        assert codes == [130] * world, complained
        assert said[0] == f"process {ends} failed: interrupted\n", said
    else:
        assert codes == [3] * world, complained
        expected = ["a scene\n" if rank == ends else f"process {ends} failed: a scene\n" for rank in range(world)]
        assert said == expected


def test_those_that_are_through_wait_for_the_others_and_nobody_is_missed() -> None:
    """However long these take; the first one goes last."""
    program = """
import os, time
from memorysam_cli.engine import processes
with processes.side_by_side() as peers:
    time.sleep(float(os.environ["SECONDS"]))
    peers.notice()
    begun = time.monotonic()
    peers.wait_for_all()
    print(f"{time.monotonic() - begun:.3f}")
"""
    several = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        Program(program, environment=environment(**several, RANK=str(rank), SECONDS=seconds))
        for rank, seconds in enumerate(("0", "2", "0"))
    ]
    said = [each.end() for each in started]
    assert [each.returncode for each in said] == [0, 0, 0], said
    waited = [float(each.stdout) for each in said]
    assert min(waited[0], waited[2]) > 1 and waited[1] < 1, waited
