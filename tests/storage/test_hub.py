"""The fetcher against a Hub of our own on the loopback: nothing here leaves the machine."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from memorysam_cli.errors import EnvironmentFault, NetworkError
from memorysam_cli.storage import hub

from .. import forked

Answers = Callable[[str], dict[str, object]]

CONTENT = bytes(range(256)) * 40
FLIPPED = CONTENT[:5000] + bytes([CONTENT[5000] ^ 1]) + CONTENT[5001:]
GOOD, WRONG = (hashlib.sha256(data).hexdigest() for data in (CONTENT, FLIPPED))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FETCH = f"""
import json
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import hub
try:
    path = hub.fetch("facebook/sam2-hiera-tiny", "sam2_hiera_tiny.pt", sha256="{GOOD}")
    print(json.dumps({{"code": 0, "path": str(path)}}))
except MemorySamError as error:
    print(json.dumps({{"code": error.exit_code, "message": str(error)}}))
"""


class Hub(BaseHTTPRequestHandler):
    """Speaks the Hub's resolve protocol; the first path element says how well."""

    requests: ClassVar[list[str]] = []
    bodies: ClassVar[dict[str, bytes]] = {"ok": CONTENT, "flip": FLIPPED}
    """What a mode sends; of "flip" the hash is another file's."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        mode = self.path.split("/")[1]
        self.requests.append(f"{mode} {self.command}")
        body = self.bodies.get(mode, b"<!doctype html><p>Please log in</p>")
        self.send_response(int(mode) if mode.isdigit() else 200)
        if mode in self.bodies:
            digest = GOOD if mode == "flip" else hashlib.sha256(body).hexdigest()
            for header in ("ETag", "X-Linked-Etag"):
                self.send_header(header, f'"{digest}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("X-Linked-Size", str(len(body)))
        if mode == "404":
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@contextmanager
def served() -> Iterator[str]:
    """The address of a running Hub, which has had no request yet.

    The fixtures of this module are made twice where another module's tests come between its own (pytest-xdist).
    """
    Hub.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served() as address:
        yield address


def start(endpoint: str, home: Path, **variables: str) -> forked.Program:
    """Fetch in a process of its own, since the client reads its environment at import."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    ours = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "20",  # none of these Hubs stalls: a busy machine does
        "HF_HUB_DOWNLOAD_TIMEOUT": "20",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return forked.Program(FETCH, environment=kept | ours | variables)


def answer(program: forked.Program) -> dict[str, object]:
    answer: dict[str, object] = json.loads(program.end().stdout)
    return answer


@pytest.fixture(scope="module")
def closed_port() -> Iterator[str]:
    with socket.socket() as bound:  # bound, never listening: whoever connects is refused
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


FAST, PATIENT = ("flip", "404", "401", "html", "offline"), ("500", "refused")


@pytest.fixture(scope="module")
def answers(endpoint: str, closed_port: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """Fetch from broken Hubs, all of a group at once: the patient ones give up only after 23 s of retries."""
    programs: dict[str, forked.Program] = {}
    found: dict[str, dict[str, object]] = {}

    def of(mode: str) -> dict[str, object]:
        if mode not in programs:
            for other in FAST if mode in FAST else PATIENT:
                url = closed_port if other == "refused" else f"{endpoint}/{other}"
                offline = {"HF_HUB_OFFLINE": "1"} if other == "offline" else {}
                programs[other] = start(url, tmp_path_factory.mktemp(other), **offline)
        if mode not in found:
            found[mode] = answer(programs[mode])
        return found[mode]

    yield of
    for unread in programs.keys() - found.keys():
        programs[unread].child.kill()
        programs[unread].end()


def test_a_good_file_arrives_and_a_warm_cache_needs_no_request(endpoint: str, closed_port: str, tmp_path: Path) -> None:
    first = answer(start(f"{endpoint}/ok", tmp_path))
    assert first["code"] == 0, first
    assert Path(str(first["path"])).read_bytes() == CONTENT
    before = list(Hub.requests)
    assert "ok GET" in before
    assert answer(start(f"{endpoint}/ok", tmp_path, HF_HUB_OFFLINE="1")) == first
    assert answer(start(closed_port, tmp_path)) == first
    assert [request for request in Hub.requests if request.startswith("ok")] == [
        r for r in before if r.startswith("ok")
    ]


def test_a_cached_file_that_has_rotted_is_removed_and_the_next_fetch_is_good(endpoint: str, tmp_path: Path) -> None:
    path = Path(str(answer(start(f"{endpoint}/ok", tmp_path))["path"]))
    path.resolve().write_bytes(FLIPPED)
    found = answer(start(f"{endpoint}/ok", tmp_path))
    assert found["code"] == 7
    message = str(found["message"])
    assert WRONG in message and GOOD in message and " retryable" in message and "not retryable" not in message
    again = answer(start(f"{endpoint}/ok", tmp_path))
    assert again["code"] == 0 and Path(str(again["path"])).read_bytes() == CONTENT


def test_one_flipped_byte_is_refused_and_nothing_of_it_stays_in_the_cache(
    answers: Answers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = answers("flip")
    assert found["code"] == 7
    message = str(found["message"])
    assert WRONG in message and GOOD in message and "not retryable" in message
    base = tmp_path_factory.getbasetemp()
    kept = [path for path in base.rglob("*") if path.is_file() and path.stat().st_size == len(FLIPPED)]
    assert not [path for path in kept if path.read_bytes() == FLIPPED]


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("404", ["HTTP 404", "not retryable", "1 try,"]),
        ("401", ["HTTP 401", "not retryable", "HF_TOKEN"]),
        ("html", ["proxy", " retryable", "1 try,"]),
        ("offline", ["HF_HUB_OFFLINE", "not retryable"]),
        pytest.param("500", ["HTTP 500", " retryable", "7 tries"], marks=pytest.mark.slow),
        pytest.param("refused", [" retryable", "7 tries"], marks=pytest.mark.slow),
    ],
)
def test_each_fault_is_one_line_that_says_whether_to_try_again(mode: str, words: list[str], answers: Answers) -> None:
    found = answers(mode)
    message = str(found.get("message"))
    assert found["code"] == 7, found
    assert "\n" not in message
    assert message.startswith("facebook/sam2-hiera-tiny/sam2_hiera_tiny.pt: ")
    assert "model.base_weights" in message
    missing = [word for word in words if word not in message]
    assert not missing, message
    assert ("not retryable" in message) == ("not retryable" in words)
    requests = [request for request in Hub.requests if request.startswith(f"{mode} ")]
    assert mode in {"refused", "offline"} or f"({len(requests)} tr" in message
    assert mode != "offline" or not requests


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", EnvironmentFault, "ended by SIGKILL"),
        ("import sys; sys.exit(3)", EnvironmentFault, "ended by exit code 3"),
        ("""print('{"code": 6, "message": "full"}')""", EnvironmentFault, "full"),
        ("""print('{"code": 7, "message": "gone"}')""", NetworkError, "gone"),
        ("import time; time.sleep(60)", NetworkError, r"the server stalls \([12] s, the last [12] s .* retryable"),
    ],
)
def test_the_helper_s_end_is_told_in_one_line(
    code: str, kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    def begin(*_: object, **options: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(hub.children, "start", begin)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, -4)  # the patience is 5 s more, and 1 s at least
    with pytest.raises(kind, match=words) as caught:
        hub.fetch("nobody/nothing", "a.pt", sha256=GOOD, patience_s=1)
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_made_is_a_fault_of_the_machine(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = answer(start(f"{endpoint}/ok", tmp_path / "file"))
    assert found["code"] == 6, found


@pytest.mark.parametrize(
    ("context", "said"),
    [("_network_faults('a/b', Path('.'))", "(7 tries, "), ("_upload_faults('a/b', 'token')", "gone")],
)
def test_what_the_client_logs_of_its_tries_is_counted_and_not_shown(context: str, said: str) -> None:
    """In a process of its own: the client makes its handler when it first logs."""
    program = (
        "from pathlib import Path\n"
        "from memorysam_cli.errors import NetworkError\n"
        "from memorysam_cli.storage import hub\n"
        "try:\n"
        f"    with hub.{context}:\n"
        "        from huggingface_hub.utils import _http\n"
        "        for _ in range(6):\n"
        "            _http.logger.warning(\"'x' thrown while requesting HEAD y\")\n"
        "        raise OSError('gone')\n"
        "except NetworkError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said in done.stdout and done.stderr == ""
