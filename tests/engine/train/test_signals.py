from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from memorysam_cli.engine.train import endings
from memorysam_cli.engine.train.endings import StopRequest, catch_stop
from memorysam_cli.errors import SIGNAL_EXIT_CODES

STUCK = """
import ctypes, sys
from memorysam_cli.engine.train import endings
endings.GRACE_S = float(sys.argv[1])
mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
with endings.catch_stop():
    print("ready", flush=True)
    while True:
        lock(mutex)  # the second time it waits for ever, and no signal ends that
"""
WORKING = """
import sys, time
from memorysam_cli import app
from memorysam_cli.engine.train import endings
app._end_politely()
try:
    with endings.catch_stop() as stop:
        print("ready", flush=True)
        while not stop:
            time.sleep(0.01)
        print("asked", flush=True)
        time.sleep(30)
finally:
    print("tidied up", flush=True)
"""


@pytest.fixture
def handled() -> Iterator[dict[int, Callable[..., object] | int | None]]:
    """The handlers; pytest's own alarm, which bounds a test, is put away meanwhile."""
    alarm = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    yield {number: signal.getsignal(number) for number in SIGNAL_EXIT_CODES}
    signal.signal(signal.SIGALRM, alarm)


@pytest.mark.parametrize("number", SIGNAL_EXIT_CODES, ids=lambda number: number.name)
def test_the_first_signal_only_asks(number: signal.Signals, handled: dict[int, Any]) -> None:
    with catch_stop() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        wait_for(stop)
        assert (stop.exit_code, stop.name) == (SIGNAL_EXIT_CODES[number], number.name)
        now = {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES}
        kept = {signal.SIGXCPU: signal.SIG_IGN} if number == signal.SIGXCPU else {}
        assert now == {**handled, **kept}  # so that the next one acts
    assert {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES} == handled


def test_each_signal_has_the_code_that_is_published() -> None:
    """128 + its number on Linux (man 7 signal); SIGUSR1 comes ahead of SIGTERM and means the same."""
    assert {number.name: code for number, code in SIGNAL_EXIT_CODES.items()} == {
        "SIGHUP": 129, "SIGINT": 130, "SIGQUIT": 131, "SIGUSR2": 140, "SIGALRM": 142, "SIGTERM": 143, "SIGUSR1": 143,
        "SIGXCPU": 152,
    }  # fmt: skip


def test_what_is_ignored_stays_ignored_and_an_alarm_of_others_stays_theirs() -> None:
    """``nohup`` ignores SIGHUP; a shell ignores SIGQUIT of what runs in the background."""
    rung: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGALRM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda number, _: rung.append(number))
        with catch_stop() as stop:
            for number in before:
                os.kill(os.getpid(), number)
            assert not stop and rung == [signal.SIGALRM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_kernels_repeated_word_that_processor_time_is_up_is_no_second_signal() -> None:
    before = signal.getsignal(signal.SIGXCPU)
    with catch_stop() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)  # by default it ends the process
            wait_for(stop)
        assert stop.exit_code == 152
    assert signal.getsignal(signal.SIGXCPU) == before


def wait_for(stop: StopRequest) -> None:
    until = time.monotonic() + 60
    while not stop:
        assert time.monotonic() < until


def test_whatever_ends_the_block_nothing_stays(handled: object) -> None:
    threads, wakeup = threading.active_count(), signal.set_wakeup_fd(-1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), catch_stop():
            raise ValueError("x")
    assert {each: signal.getsignal(each) for each in SIGNAL_EXIT_CODES} == handled
    assert signal.set_wakeup_fd(-1) == -1 and endings._signal_descriptors == set()
    signal.set_wakeup_fd(wakeup)
    until = time.monotonic() + 60
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


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGUSR1,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGHUP, signal.SIGALRM)),
    ],
    ids=lambda each: each.name,
)
def test_the_second_signal_ends_even_a_process_that_waits_for_ever(number: signal.Signals) -> None:
    with start(STUCK, "0.2") as process:
        time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)  # two equal ones at once would be one
        assert process.poll() is None
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == SIGNAL_EXIT_CODES[number]
    assert said == endings._LAST_WORDS.format(SIGNAL_EXIT_CODES[number])


def test_the_second_signal_unwinds_a_process_that_can_hear_it() -> None:
    with start(WORKING) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=25)  # by itself it would sleep for 30 s
    assert rest == "tidied up\n" and process.returncode != 0 and "ended immediately" not in said


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


def test_a_signal_to_all_while_a_worker_is_forked_is_no_second_one_for_the_parent() -> None:
    """A terminal sends Ctrl-C to the whole group: also to a child that has just begun, with its parent's handlers."""
    script = (
        "import os, signal, time\n"
        "os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))\n"  # the first thing there
        "from memorysam_cli.engine.train import endings\n"
        "endings.GRACE_S = 0.05\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "with endings.catch_stop() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    if not (child := os.fork()): os._exit(0)\n"
        "    os.waitpid(child, 0); time.sleep(0.3)\n"
        "    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
        "    print('continues', stop.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "continues 143\n"), done.stderr
