"""A Hub on the loopback that is ill in every way; the first element of the path says in which."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

CONTENT = bytes(range(256)) * 1600
FLIPPED = CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]
GOOD = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = b"<!doctype html><p>Please log in</p>"
CUT = 250_000
"""Where a connection is cut, of 409,600 bytes."""
STATUS = {"401": 401, "404": 404, "429": 429, "429 for an hour": 429, "500": 500}


class IllHub(BaseHTTPRequestHandler):
    """Speaks the Hub's resolve protocol, well or badly."""

    requests: ClassVar[Counter[str]] = Counter()
    gets: ClassVar[Counter[str]] = Counter()
    is_over: ClassVar[threading.Event] = threading.Event()

    def do_HEAD(self) -> None:
        mode = self._mode()
        if mode == "HEAD hangs":
            self.is_over.wait(60)
            self.close_connection = True
            return
        self._start(mode, length=len(CONTENT))

    def do_GET(self) -> None:
        mode = self._mode()
        self.gets[mode] += 1
        begin = 0
        if "range" not in mode and (wanted := self.headers.get("Range", "")):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = (FLIPPED if mode == "flip" else CONTENT)[begin:]
        if mode == "short":
            body = body[:-1000]
        if mode == "html" or mode in STATUS:
            body = PAGE
        self._start(mode, length=len(body), begin=begin)
        if mode == "endless":
            while not self.is_over.is_set():
                self.wfile.write(CONTENT)
        elif mode == "drip":
            for number in range(len(body)):
                self.wfile.write(body[number : number + 1])
                self.wfile.flush()
                if self.is_over.wait(0.1):
                    return
        elif mode == "slow":
            for number in range(0, len(body), 65_536):
                self.wfile.write(body[number : number + 65_536])
                time.sleep(1.2)
        elif mode == "stall":
            self.wfile.write(body[: max(CUT - begin, 0)])
            self.is_over.wait(60)
        elif "cut always" in mode or ("cut once" in mode and self.gets[mode] == 1):
            self.wfile.write(body[: max(CUT - begin, 0)])
        else:
            self.wfile.write(body)

    def _mode(self) -> str:
        mode = self.path.split("/")[1].replace("%20", " ")
        self.requests[mode] += 1
        return mode

    def _start(self, mode: str, *, length: int, begin: int = 0) -> None:
        self.send_response(STATUS.get(mode, 206 if begin else 200))
        if mode not in STATUS and mode != "html":
            for header in ("ETag", "X-Linked-Etag"):
                self.send_header(header, f'"{GOOD}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if mode != "endless":
                self.send_header("X-Linked-Size", str(len(CONTENT)))
        if mode == "404":
            self.send_header("X-Error-Code", "EntryNotFound")
        if mode == "429 for an hour":
            self.send_header("Retry-After", "3600")
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if mode != "endless":
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the client has had enough
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@contextmanager
def served() -> Iterator[str]:
    """The address of a running Hub."""
    IllHub.is_over.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), IllHub) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        IllHub.is_over.set()
        server.shutdown()
        thread.join()
