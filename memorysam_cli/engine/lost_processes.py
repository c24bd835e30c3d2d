"""Detection of lost processes, by connections that the kernel closes when a process dies for any reason.

Every process has a connection to the first one, which passes on what it learns. The backends of ``torch.distributed``
notice a loss late (NCCL: after its time-out, and then by a crash) or without naming the process (gloo).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

from memorysam_cli.errors import MemorySamError, environment_fault, signal_exit_code

GRACE_S = 20.0
"""Seconds that a process may continue after another was lost; the sum that it waits in should fail before."""
_NAMING_S = 2.0
"""Seconds after a backend's own error within which the name of the lost process may arrive."""
_JOINING_S = 10.0
_POLL_S = 0.05
_KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""TCP keep-alive: a host without power closes no connection, so it counts as lost after 20 s of silence."""
_TOKEN_BYTES = 16
_MESSAGE = struct.Struct("!cIBH")
"""Header: kind, rank, exit code, and the length of the text that follows."""
_AT_WORK, _DONE, _FAILED, _LOST = b"w", b"d", b"f", b"l"
_WORDS_BYTES = 4000


class LostProcess(NamedTuple):
    """A process that cannot continue: killed, cut off, or ended by an error that it reports itself."""

    rank: int
    exit_code: int | None = None
    """The exit code of a failed process; None: it was killed or cut off."""
    message: str = ""
    """The message of its error."""

    def __str__(self) -> str:
        return f"rank {self.rank} {'was lost' if self.exit_code is None else 'failed'}"


@dataclass(frozen=True)
class Invitation:
    """The address of the first process, and a secret token for connecting to it."""

    host: str
    port: int
    token: bytes

    def to_text(self) -> str:
        """The invitation as text for :meth:`from_text`."""
        return json.dumps(asdict(self) | {"token": self.token.hex()})

    @classmethod
    def from_text(cls, text: str) -> Invitation:
        """The invitation from another process's text."""
        parts = json.loads(text)
        return cls(parts["host"], parts["port"], bytes.fromhex(parts["token"]))


def invite(host: str, *, is_one_host: bool) -> tuple[socket.socket, Invitation]:
    """Listen for the other processes; called by the first one.

    Args:
        host: the name of this machine for the others.
        is_one_host: all processes are on this machine; then no other machine can connect.

    Raises:
        OSError: no port can be opened.
    """
    where = "127.0.0.1" if is_one_host else "" if not _is_loopback(host) else host
    listener = socket.create_server((where, 0), backlog=1024)
    address = "127.0.0.1" if is_one_host else host
    return listener, Invitation(address, listener.getsockname()[1], secrets.token_bytes(_TOKEN_BYTES))


def join(invitation: Invitation, *, rank: int, on_stuck: Callable[[LostProcess, str], object] | None) -> PeerWatch:
    """The watch of any process but the first.

    Raises:
        OSError: the first process cannot be reached.
    """
    connection = socket.create_connection((invitation.host, invitation.port), timeout=_JOINING_S)
    connection.settimeout(None)
    connection.sendall(invitation.token + struct.pack("!I", rank))
    watch = PeerWatch(rank, invitation.token, listener=None, on_stuck=on_stuck)
    watch.add(_Peer(connection, rank=0))
    return watch


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


class PeerWatch:
    """A process's view of the others, updated by a separate thread.

    Args:
        rank: of this process.
        token: the secret token.
        listener: of the first process only; the others connect to it.
        on_stuck: called with the advice of :meth:`at_work` when another process is lost and this process is still
            working :data:`GRACE_S` later. None: this process never waits in a call that no exception can interrupt.
    """

    def __init__(
        self,
        rank: int,
        token: bytes,
        *,
        listener: socket.socket | None,
        on_stuck: Callable[[LostProcess, str], object] | None,
    ) -> None:
        self.rank, self._token, self._listener, self._on_stuck = rank, token, listener, on_stuck
        self._selector = selectors.DefaultSelector()
        self._peers: list[_Peer] = []
        self._come: set[int] = set()
        self._through: set[int] = set()
        self._advice: list[Callable[[], str]] = []
        self._lost: LostProcess | None = None
        self._known, self._idle, self._sending = threading.Event(), threading.Event(), threading.Lock()
        self._idle.set()

    @contextlib.contextmanager
    def at_work(self, advice: Callable[[], str]) -> Iterator[None]:
        """While the block runs, this process needs all others; its end is reported to them.

        Args:
            advice: the state of the work, and how to continue.
        """
        self._advice.append(advice)
        self._idle.clear()
        self._tell(_AT_WORK, LostProcess(self.rank))
        has_failed = True
        try:
            yield
            has_failed = False
        except BaseException as error:
            self._tell(_FAILED, LostProcess(self.rank, *_explained(error)))
            raise
        finally:
            self._advice.remove(advice)
            if not self._advice:
                self._idle.set()
                if not has_failed:
                    self.tell_done()

    def tell_done(self) -> None:
        """Tell the others that this process is done, so that its end does not count as a loss."""
        self._tell(_DONE, LostProcess(self.rank))

    def lost(self, *, within: float = _NAMING_S) -> LostProcess | None:
        """The lost process, if one is known or becomes known within this number of seconds."""
        self._known.wait(within)
        return self._lost

    def not_come(self, world: int) -> list[int]:
        """The ranks that have not connected yet; only for the first process, to which all connect."""
        return sorted({*range(world)} - self._come - {self.rank})

    def are_through(self, ranks: Collection[int]) -> bool:
        """Whether all connected processes have reported that they are done; one that left silently counts as lost."""
        connected = {peer.rank for peer in [*self._peers]}  # first: a process that leaves later has reported before
        waited_for = set(ranks) - self._through
        for rank in waited_for - connected:
            self._note(LostProcess(rank))
        return not waited_for

    def start(self) -> None:
        """Start the thread."""
        if self._listener is not None:
            self._selector.register(self._listener, selectors.EVENT_READ, None)
        _all.append(self)
        threading.Thread(target=self._keep, name="peer-watch", daemon=True).start()

    def _keep(self) -> None:
        until: float | None = None
        while True:
            for key, _ in self._selector.select(None if until is None else _POLL_S):
                if key.data is not None:
                    self._read(key.data)
                elif self._listener is not None:  # also after a loss, for processes that do not know of it yet
                    self._let_in(self._listener)
            if self._lost is None or self._on_stuck is None:
                continue
            until = time.monotonic() + GRACE_S if until is None else until
            if self._idle.is_set():
                return
            if time.monotonic() > until:
                self._on_stuck(self._lost, self._advice[-1]() if self._advice else "")
                return

    def _let_in(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            self.add(_Peer(connection))

    def add(self, peer: _Peer) -> None:
        """Watch one more connection."""
        _keep_alive(peer.socket)
        self._peers.append(peer)
        self._selector.register(peer.socket, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        try:
            piece = peer.socket.recv(4096)
        except OSError:
            piece = b""
        if not piece:
            self._forget(peer)
            if peer.rank is not None and peer.is_at_work:
                self._note(LostProcess(peer.rank))
            return
        peer.unread += piece
        if peer.rank is None and not self._greet(peer):
            return
        while len(peer.unread) >= _MESSAGE.size:
            kind, rank, code, length = _MESSAGE.unpack(peer.unread[: _MESSAGE.size])
            end = _MESSAGE.size + length
            if len(peer.unread) < end:
                return
            words, peer.unread = peer.unread[_MESSAGE.size : end].decode(errors="replace"), peer.unread[end:]
            if kind in {_FAILED, _LOST}:
                self._note(LostProcess(rank, code, words) if kind == _FAILED else LostProcess(rank))
                continue
            peer.is_at_work = kind == _AT_WORK
            self._through = self._through - {rank} if peer.is_at_work else self._through | {rank}

    def _greet(self, peer: _Peer) -> bool:
        """Whether a new connection has sent the token and its rank; otherwise it is closed."""
        if len(peer.unread) < _TOKEN_BYTES + 4:
            return False
        token, peer.unread = peer.unread[:_TOKEN_BYTES], peer.unread[_TOKEN_BYTES:]
        if not hmac.compare_digest(token, self._token):
            self._forget(peer)
            return False
        (peer.rank,) = struct.unpack("!I", peer.unread[:4])
        peer.unread = peer.unread[4:]
        self._come.add(peer.rank)
        if self._advice:
            self._tell(_AT_WORK, LostProcess(self.rank))
        if self._lost is not None:
            self._tell_lost(self._lost)
        return True

    def _forget(self, peer: _Peer) -> None:
        self._selector.unregister(peer.socket)
        self._peers.remove(peer)
        peer.socket.close()

    def _note(self, lost: LostProcess) -> None:
        """Record the first lost process; later ones fail because of it."""
        if self._lost is None and lost.rank != self.rank:
            if self.rank == 0:  # before this process reacts and ends
                self._tell_lost(lost)
            self._lost = lost
            self._known.set()

    def _tell_lost(self, lost: LostProcess) -> None:
        self._tell(_LOST if lost.exit_code is None else _FAILED, lost)

    def _tell(self, kind: bytes, about: LostProcess) -> None:
        words = about.message.encode(errors="replace")[:_WORDS_BYTES]
        message = _MESSAGE.pack(kind, about.rank, about.exit_code or 0, len(words)) + words
        with self._sending:
            for peer in [peer for peer in self._peers if peer.rank is not None]:
                with contextlib.suppress(OSError):  # a closed connection is reported elsewhere
                    peer.socket.sendall(message)

    def leave_in_child(self) -> None:
        """Close the connections in a forked data worker, so that it is not mistaken for its parent if it lives
        longer."""
        for peer in self._peers:
            peer.socket.close()
        if self._listener is not None:
            self._listener.close()


@dataclass(eq=False)
class _Peer:
    """The other end of a connection; ``rank`` is unknown until it has introduced itself.

    It can be lost only while it works: a process may be done before the others.
    """

    socket: socket.socket
    rank: int | None = None
    is_at_work: bool = False
    unread: bytes = b""


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit code of this process, and the reason."""
    if not isinstance(error, Exception):
        return signal_exit_code(error), "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
    known = error if isinstance(error, MemorySamError) else environment_fault(error)
    return (1, repr(error)) if known is None else (known.exit_code, str(known))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in _KEEPALIVE.items():
        with contextlib.suppress(OSError, AttributeError):  # other systems have other names
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_all: list[PeerWatch] = []


def _close_in_child() -> None:
    for each in _all:
        each.leave_in_child()
    _all.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
