"""Uploads against a Hub of our own on the loopback: nothing here leaves the machine, and no token is ever said."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from memorysam_cli.errors import EnvironmentFault, MemorySamError, NetworkError, UsageError
from memorysam_cli.storage.hub import Upload, refuse_name, send

# The Hub's client calls httpx in a way that httpx warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_averysecrettokenofnobody"
REPO = "alice/memorysam-demo"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Shelf:
    """What a Hub has, and what it was asked."""

    address: str = ""
    refuses: int = 0
    """The status that every request of writing gets, if any."""
    stalls: threading.Event | None = None
    """Until this is set, no request of writing is answered."""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 → content, of what came as LFS."""
    tokens: set[str] = field(default_factory=set)
    writes: list[str] = field(default_factory=list)


def handler(shelf: Shelf) -> type[BaseHTTPRequestHandler]:
    class Hub(BaseHTTPRequestHandler):
        """Speaks what an upload needs: resolve, repos/create, preupload, LFS batch, commit."""

        def do_HEAD(self) -> None:
            self._resolve(with_body=False)

        def do_GET(self) -> None:
            self._resolve(with_body=True)

        def _resolve(self, *, with_body: bool) -> None:
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/(.+)", self.path)
            files = shelf.repos.get(found[1]) if found else None
            if files is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif found is None or found[2] not in files:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                body = files[found[2]]
                digest = hashlib.sha256(body).hexdigest()
                headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(body))}
                self._send(200, body, headers, with_body=with_body)

        def do_PUT(self) -> None:
            body = self._body()
            shelf.large[self.path.rpartition("/")[2]] = body
            self._send(200, b"", {"ETag": '"x"'})

        def do_POST(self) -> None:
            body = self._body()
            shelf.tokens.add(self.headers.get("Authorization", ""))
            shelf.writes.append(self.path)
            if shelf.stalls is not None:
                shelf.stalls.wait(30)
            if shelf.refuses:
                self._send(shelf.refuses, b'{"error": "no"}')
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                is_new = repo not in shelf.repos
                shelf.repos.setdefault(repo, {})
                if is_new:
                    shelf.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
                self._json({"url": f"{shelf.address}/{repo}"}, 200 if is_new else 409)
            elif "/preupload/" in self.path:
                names = [each["path"] for each in json.loads(body)["files"]]
                modes = [("lfs" if name.endswith(".safetensors") else "regular", name) for name in names]
                self._json({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for m, n in modes]})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                made = [
                    {**each, "actions": {"upload": {"href": f"{shelf.address}/lfs/{each['oid']}"}}} for each in objects
                ]
                self._json({"transfer": "basic", "objects": made})
            elif "/commit/" in self.path:
                self._commit(body.decode())
            else:
                self._json({})

        def _commit(self, body: str) -> None:
            repo = self.path.split("/api/models/")[1].split("/commit/")[0]
            for line in body.splitlines():
                each = json.loads(line)
                value = each["value"]
                if each["key"] == "file":
                    shelf.repos[repo][value["path"]] = base64.b64decode(value["content"])
                if each["key"] == "lfsFile":
                    shelf.repos[repo][value["path"]] = shelf.large[value["oid"]]
            url = f"{shelf.address}/{repo}/commit/{COMMIT}"
            self._json({"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                pieces = []
                while size := int(self.rfile.readline(), 16):
                    pieces.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(pieces)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _json(self, value: Any, status: int = 200) -> None:
            self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(
            self, status: int, body: bytes, headers: dict[str, str] | None = None, *, with_body: bool = True
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    return Hub


@contextmanager
def served() -> Iterator[Shelf]:
    """A running Hub, empty."""
    shelf = Shelf()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(shelf)) as server:
        shelf.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield shelf
        server.shutdown()
        thread.join()


def connect(shelf: Shelf, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the client find this Hub; it reads its environment at import, so that its constants are changed."""
    patch.setattr(constants, "ENDPOINT", shelf.address)
    template = shelf.address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    with served() as shelf:
        connect(shelf, monkeypatch, tmp_path / "cache")
        yield shelf


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path | bytes]:
    weights = tmp_path / "best.safetensors"
    weights.write_bytes(bytes(range(256)) * 40)
    return {"best.safetensors": weights, "README.md": b"# ours\n", "recipe.yaml": b"name: demo\n"}


def test_all_files_arrive_as_they_are_in_one_commit(hub: Shelf, files: dict[str, Path | bytes]) -> None:
    url = send(Upload(REPO, files))
    assert url == f"{hub.address}/{REPO}/commit/{COMMIT}"
    wanted = {name: each if isinstance(each, bytes) else each.read_bytes() for name, each in files.items()}
    assert hub.repos[REPO] == wanted
    assert sum("/commit/" in path for path in hub.writes) == 1
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_as_private_as_asked(private: bool, hub: Shelf, files: dict[str, Path | bytes]) -> None:
    send(Upload(REPO, files, private=private))
    assert hub.private == {REPO: private}


def test_another_card_that_is_there_is_never_replaced_unasked(hub: Shelf, files: dict[str, Path | bytes]) -> None:
    hub.repos[REPO] = {"README.md": b"# theirs\n"}
    with pytest.raises(UsageError, match=r"README.md of its own that differs; nothing was sent"):
        send(Upload(REPO, files))
    assert hub.repos[REPO] == {"README.md": b"# theirs\n"} and not hub.writes
    send(Upload(REPO, files, replaces_card=True))
    assert hub.repos[REPO]["README.md"] == b"# ours\n"


def test_the_same_card_or_none_stops_nothing(hub: Shelf, files: dict[str, Path | bytes]) -> None:
    hub.repos[REPO] = {"README.md": b"# ours"}
    send(Upload(REPO, files))
    hub.repos[REPO]["README.md"] = b"# theirs\n"
    send(Upload(REPO, {name: each for name, each in files.items() if name != "README.md"}))
    assert hub.repos[REPO]["README.md"] == b"# theirs\n" and "recipe.yaml" in hub.repos[REPO]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "not retryable: set HF_TOKEN"),
        (403, "not retryable: check the owner's name and the token's rights"),
        (413, "not retryable: make room"),
        (418, "HTTP 418; not retryable"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_do(
    status: int, words: str, hub: Shelf, files: dict[str, Path | bytes]
) -> None:
    hub.refuses = status
    with pytest.raises(NetworkError) as fault:
        send(Upload(REPO, files))
    assert words in str(fault.value) and "\n" not in str(fault.value)
    assert TOKEN not in str(fault.value) and not hub.repos


def test_a_server_that_is_not_there_is_a_network_fault(
    hub: Shelf, files: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(NetworkError, match="retryable") as fault:
        send(Upload(REPO, files))
    assert TOKEN not in str(fault.value)


def test_a_server_that_stalls_is_given_up(
    hub: Shelf, files: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stalls = threading.Event()
    monkeypatch.setattr("memorysam_cli.storage.hub.UPLOAD_PATIENCE_S", 0.2)
    begun = time.monotonic()
    with pytest.raises(NetworkError, match="retryable: run the same command again"):
        send(Upload(REPO, files))
    assert time.monotonic() - begun < 10
    hub.stalls.set()
    send(Upload(REPO, files))


def test_offline_and_without_a_token_nothing_is_asked(
    hub: Shelf, files: dict[str, Path | bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="HF_HUB_OFFLINE forbids to send anything; unset it"):
        send(Upload(REPO, files))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(EnvironmentFault, match="hf auth login"):
        send(Upload(REPO, files))
    assert not hub.writes


@pytest.mark.parametrize(
    "name", ["", "demo", "a/b/c", "a/", "/b", "a/b--c", "../x", "a/x.git", "ä/b", "a b/c", "a/b\n"]
)
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME"):
        refuse_name(name)


@pytest.mark.parametrize("name", [REPO, "a/b", "A-1/x_y.z", "org/" + "n" * 90])
def test_what_the_hub_takes_is_taken(name: str) -> None:
    from huggingface_hub.utils._validators import validate_repo_id

    validate_repo_id(name)
    refuse_name(name)


def test_all_faults_are_of_this_program(hub: Shelf, files: dict[str, Path | bytes]) -> None:
    hub.refuses = 500
    with pytest.raises(MemorySamError, match="retryable: run the same command later"):
        send(Upload(REPO, files))
