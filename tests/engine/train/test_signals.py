from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from memorysam_cli.engine.train import endings
from memorysam_cli.engine.train.endings import SIGNAL_EXIT_CODES, StopRequest, catch_stop

STUCK = """
import ctypes, sys
from memorysam_cli.engine.train import endings as signals
signals.GRACE_S = float(sys.argv[1])
mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
with signals.catch_stop():
    print("ready", flush=True)
    while True:
        lock(mutex)  # the second time it waits for ever, and no signal ends that
"""
WORKING = """
import sys, time
from memorysam_cli import app
from memorysam_cli.engine.train import endings as signals
app._end_politely()
try:
    with signals.catch_stop() as stop:
        print("ready", flush=True)
        while not stop:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(30)
finally:
    print("tidied up", flush=True)
"""


@pytest.fixture
def handled() -> dict[int, Callable[..., object] | int | None]:
    return {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}


@pytest.mark.parametrize("number", SIGNAL_EXIT_CODES, ids=lambda number: number.name)
def test_the_first_signal_only_asks(number: signal.Signals, handled: object) -> None:
    with catch_stop() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        wait_for(stop)
        assert (stop.exit_code, stop.name) == (SIGNAL_EXIT_CODES[number], number.name)
        assert {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES} == handled  # so that the next one acts
    assert {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES} == handled


def wait_for(stop: StopRequest) -> None:
    until = time.monotonic() + 5
    while not stop:
        assert time.monotonic() < until


def test_whatever_ends_the_block_nothing_stays(handled: object) -> None:
    threads, wakeup = threading.active_count(), signal.set_wakeup_fd(-1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), catch_stop():
            raise ValueError("x")
    assert {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES} == handled
    assert signal.set_wakeup_fd(-1) == -1 and endings._counted == set()
    signal.set_wakeup_fd(wakeup)
    until = time.monotonic() + 5
    while threading.active_count() > threads:
        assert time.monotonic() < until


def test_beside_the_main_thread_nobody_is_asked() -> None:
    found: list[StopRequest] = []

    def work() -> None:
        with catch_stop() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0]


def start(script: str, *words: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", script, *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNAL_EXIT_CODES, ids=lambda number: number.name)
def test_the_second_signal_ends_even_a_process_that_waits_for_ever(number: signal.Signals) -> None:
    with start(STUCK, "0.2") as process:
        time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)  # two equal ones at once would be one
        assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert process.returncode == SIGNAL_EXIT_CODES[number]
    assert said == endings._LAST_WORDS.format(SIGNAL_EXIT_CODES[number])


def test_the_second_signal_unwinds_a_process_that_can_hear_it() -> None:
    with start(WORKING) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=10)
    assert rest == "tidied up\n" and process.returncode != 0
    assert time.monotonic() - begun < endings.GRACE_S and "ended at once" not in said


def test_signals_of_a_forked_child_are_none_of_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data workers are ended by signals."""
    ended: list[int] = []
    monkeypatch.setattr(endings, "GRACE_S", 0.0)
    monkeypatch.setattr(endings.os, "_exit", ended.append)
    with catch_stop() as stop:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: None)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        time.sleep(0.05)
    assert ended == [] and not stop
