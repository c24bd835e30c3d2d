from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from memorysam_cli.engine import lost_processes
from memorysam_cli.engine.lost_processes import Invitation, LostProcess, PeerWatch

WORLD = 3


class Company:
    """Three watches in one process, each with what it was told when it was stuck."""

    def __init__(self) -> None:
        listener, self.invitation = lost_processes.invite("127.0.0.1", is_one_host=True)
        self.stuck: list[tuple[int, LostProcess, str]] = []
        self.works: list[contextlib.AbstractContextManager[None]] = []
        self.each = [PeerWatch(0, self.invitation.token, listener=listener, on_stuck=self._on_stuck(0))]
        for rank in range(1, WORLD):
            self.each.append(lost_processes.join(self.invitation, rank=rank, on_stuck=self._on_stuck(rank)))
        for one in self.each:
            one.start()

    def _on_stuck(self, rank: int) -> Callable[[LostProcess, str], None]:
        return lambda lost, advice: self.stuck.append((rank, lost, advice))

    def at_work(self, rank: int) -> None:
        """Enter the work and stay in it."""
        work = self.each[rank].at_work(lambda: f"rank {rank} continues")
        work.__enter__()
        self.works.append(work)  # one that is forgotten ends

    def lose(self, rank: int) -> None:
        """What the kernel does when a process dies."""
        for peer in list(self.each[rank]._peers):
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave no connection open for the next test."""
        for rank in range(WORLD):
            self.lose(rank)
        time.sleep(0.02)  # their threads close what they read the end of
        for one in self.each:
            for peer in list(one._peers):
                peer.socket.close()
        assert self.each[0]._listener is not None
        self.each[0]._listener.close()
        lost_processes._all.clear()

    def wait_until_seen(self, *ranks: int) -> None:
        """Until the first process has heard that these are at work."""
        wait_for(lambda: {peer.rank for peer in self.each[0]._peers if peer.is_at_work} == {*ranks})


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    monkeypatch.setattr(lost_processes, "GRACE_S", 0.3)
    made = Company()
    yield made
    made.close()


@pytest.mark.parametrize("lost", [1, 2])
def test_all_hear_who_was_lost(lost: int, company: Company) -> None:
    for rank in range(WORLD):
        company.at_work(rank)
    company.wait_until_seen(1, 2)
    company.lose(lost)
    other = 3 - lost
    for rank in (0, other):
        found = company.each[rank].lost(within=5)
        assert found == LostProcess(lost) and str(found) == f"rank {lost} was lost"
    # Those that are still waiting for it later are told that they are stuck, with their own advice.
    wait_for(lambda: len(company.stuck) >= 2)
    assert {(0, LostProcess(lost), "rank 0 continues"), (other, LostProcess(lost), f"rank {other} continues")} <= {
        *company.stuck
    }


def test_all_hear_that_the_first_was_lost(company: Company) -> None:
    for rank in range(WORLD):
        company.at_work(rank)
    wait_for(lambda: all(one._peers and one._peers[0].is_at_work for one in company.each[1:]))
    company.each[0]._tell = lambda *_: None  # type: ignore[method-assign]  # the dead tell nothing
    company.lose(0)
    assert [one.lost(within=5) for one in company.each[1:]] == [LostProcess(0)] * 2


def test_a_process_whose_work_fails_says_so(company: Company) -> None:
    company.at_work(0)
    company.at_work(1)
    with pytest.raises(ValueError, match="x"), company.each[2].at_work(str):
        raise ValueError("x")
    found = [one.lost(within=5) for one in company.each[:2]]
    assert found == [LostProcess(2, 1, "ValueError('x')")] * 2 and str(found[0]) == "rank 2 failed"
    assert company.each[2].lost(within=0.1) is None  # that it failed is no news to itself


def test_a_process_that_is_through_before_the_others_is_not_missed(company: Company) -> None:
    company.at_work(0)
    company.at_work(2)
    with company.each[1].at_work(str), company.each[1].at_work(str):
        company.wait_until_seen(1, 2)
    company.wait_until_seen(2)
    company.lose(1)
    assert company.each[0].lost(within=0.5) is None and company.each[2].lost(within=0) is None
    assert company.stuck == []


def test_nobody_is_stuck_who_has_left_the_work_in_time(company: Company) -> None:
    company.at_work(1)
    with company.each[0].at_work(str):
        company.wait_until_seen(1)
        company.lose(1)
        assert company.each[0].lost(within=5) == LostProcess(1)
    time.sleep(0.5)
    assert [rank for rank, *_ in company.stuck] in ([], [1])  # the lost one's own thread may find itself alone


def test_of_several_losses_the_first_is_told(company: Company) -> None:
    for rank in range(WORLD):
        company.at_work(rank)
    company.wait_until_seen(1, 2)
    company.lose(2)
    assert company.each[0].lost(within=5) == LostProcess(2)
    company.lose(1)
    time.sleep(0.05)
    assert company.each[0].lost() == LostProcess(2)


def test_a_stranger_is_shown_the_door_and_changes_nothing(company: Company) -> None:
    company.at_work(1)
    company.wait_until_seen(1)
    for words in (b"GET / HTTP/1.0\r\nHost: here\r\n\r\n", os.urandom(64), b"short"):
        with socket.create_connection((company.invitation.host, company.invitation.port)) as stranger:
            stranger.sendall(words)
            if len(words) > lost_processes._TOKEN_BYTES:
                stranger.settimeout(5)
                with pytest.raises(ConnectionError):
                    if not stranger.recv(1):
                        raise ConnectionResetError
    assert company.each[0].lost(within=0.1) is None
    assert {peer.rank for peer in company.each[0]._peers if peer.rank is not None} == {1, 2}


def test_a_forked_child_that_lives_on_does_not_hide_the_loss_of_its_parent(company: Company) -> None:
    """As a data worker does after its process was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        # A process of the same company, with a worker of its own.
        mine = lost_processes.join(company.invitation, rank=9, on_stuck=lambda *_: None)
        mine.start()
        with mine.at_work(str):
            if os.fork() == 0:
                os.write(writing, b"1")
            time.sleep(20)
            os._exit(0)
    company.at_work(0)
    os.read(reading, 1)
    wait_for(lambda: any(peer.rank == 9 and peer.is_at_work for peer in company.each[0]._peers))
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert company.each[0].lost(within=5) == LostProcess(9)


def test_where_nobody_listens_there_is_no_watch() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        lost_processes.join(Invitation("127.0.0.1", port, b"x" * 16), rank=1, on_stuck=lambda *_: None)


@pytest.mark.parametrize(
    ("host", "is_one_host", "wanted"),
    [("node7", True, "127.0.0.1"), ("127.0.0.1", False, "127.0.0.1"), ("node7", False, "0.0.0.0")],
)
def test_it_listens_no_further_than_the_processes_are(host: str, is_one_host: bool, wanted: str) -> None:
    listener, _ = lost_processes.invite(host, is_one_host=is_one_host)
    with listener:
        assert listener.getsockname()[0] == wanted


def test_the_thread_does_not_keep_the_program_alive(company: Company) -> None:
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "peer-watch")
