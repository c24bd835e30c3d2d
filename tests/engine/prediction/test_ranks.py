"""Processes that fail, and what the others hear of it; without a network, so that it takes seconds."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from .test_ways import environment, free_port

PROGRAM = """
import faulthandler, os, sys, time
faulthandler.dump_traceback_later(40)  # one that hangs says where
from memorysam_cli.engine.prediction import ranks
from memorysam_cli.errors import DataError, MemorySamError
ranks.GRACE_S = 1000  # nobody needs it who is heard
ranks.BEAT_S, ranks.LOST_S = 0.1, 1.5
rank, ends, is_waited_for = int(os.environ["RANK"]), int(sys.argv[1]), sys.argv[2] == "True"
try:
    with ranks.company() as company:
        if rank == ends:
            if is_waited_for:
                time.sleep(1.5)  # the others have come to their end, and wait
            if sys.argv[3] == "killed":
                os._exit(9)
            raise DataError("a scene")
        while not is_waited_for:
            time.sleep(0.1)
            company.notice()
        company.gather(rank)
except MemorySamError as fault:
    print(fault)
    sys.exit(fault.exit_code)
"""


@pytest.mark.parametrize(
    ("world", "ends", "is_waited_for", "how"),
    [
        (2, 0, True, "fails"),
        (2, 0, False, "fails"),
        (2, 1, True, "fails"),
        (3, 1, True, "fails"),
        (3, 1, True, "killed"),
        (3, 1, False, "killed"),
    ],
    ids=str,
)
def test_one_that_ends_early_is_heard_of_at_once(world: int, ends: int, is_waited_for: bool, how: str) -> None:
    several = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(ends), str(is_waited_for), how], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE, env=environment(**several, RANK=str(rank)),
        )
        for rank in range(world)
    ]  # fmt: skip
    said, complained = [], []
    for each in started:
        timer = threading.Timer(60, each.kill)
        timer.start()
        for text, texts in zip(each.communicate(), (said, complained), strict=True):
            texts.append(text)
        timer.cancel()
    codes = [each.returncode for each in started]
    if how == "killed":
        assert codes == [9 if rank == ends else 6 for rank in range(world)], complained
        assert "process 1 of this prediction is lost" in said[0], said
    else:
        assert codes == [3] * world, complained
        expected = ["a scene\n" if rank == ends else f"process {ends} failed: a scene\n" for rank in range(world)]
        assert said == expected
