"""Block G: whatever a server does, wrong bytes are neither accepted nor kept, and nobody waits for long."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.faults.conftest import Figures
from tests.faults.hub_server import CONTENT, FLIPPED, GOOD, IllHub, served
from tests.faults.scale import SLOW, SOAK
from tests.forks import ROOT

FETCH = f"""
import json, sys, time
from memorysam_cli.errors import MemorySamError
from memorysam_cli.storage import hub
hub.MAX_BYTES = 5_000_000
begun = time.monotonic()
try:
    patience = {{"patience_s": float(sys.argv[1])}} if sys.argv[1] else {{}}
    path = hub.fetch("facebook/sam2-hiera-tiny", "sam2_hiera_tiny.pt", sha256="{GOOD}", **patience)
    found = {{"code": 0, "path": str(path)}}
except MemorySamError as error:
    found = {{"code": error.exit_code, "message": str(error)}}
print(json.dumps(found | {{"seconds": time.monotonic() - begun}}))
"""
NAIVE = """
import json
from tests.faults.naive import downloading
print(json.dumps({"code": 0, "path": str(downloading.fetch("facebook/sam2-hiera-tiny", "sam2_hiera_tiny.pt"))}))
"""
LEAST, SHORT, LONG = "6", "10", "40"
"""Seconds of patience: with a server that never delivers; with others; and with those on which the client itself gives
up after 23 s."""
GOOD_ENDS = ("ok", "cut once", "cut once, range ignored", "slow")
BAD_ENDS = {
    "flip": (SHORT, ["wrong content", "not retryable"]),
    "html": (SHORT, ["not the Hub's", " retryable"]),
    "short": (SHORT, ["Consistency check failed", " retryable"]),
    "cut always": (LONG, ["broken", " retryable"]),
    "cut always, range ignored": (LEAST, ["the server stalls", " retryable"]),
    "stall": (LEAST, ["the server stalls", " retryable"]),
    "drip": (LEAST, ["the server stalls", " retryable"]),
    "endless": (SHORT, ["more than 5000000 bytes", "not retryable"]),
    "HEAD hangs": (LEAST, ["the server stalls", " retryable"]),
    "401": (SHORT, ["HTTP 401", "not retryable"]),
    "404": (SHORT, ["HTTP 404", "not retryable"]),
    "429": (LONG, ["HTTP 429", " retryable"]),
    "429 for an hour": (LEAST, ["the server stalls", " retryable"]),
    "500": (LONG, ["HTTP 500", " retryable"]),
}


@dataclass
class Fetched:
    """What came of it, and what is in the cache."""

    said: dict[str, Any]
    home: Path

    @property
    def kept(self) -> list[Path]:
        """Files with content in the cache."""
        found = [path for path in self.home.rglob("*") if path.is_file() and not path.is_symlink()]
        return [path for path in found if path.stat().st_size > 1000 or path.name.endswith(".incomplete")]


def told(endpoint: str, home: Path) -> dict[str, str]:
    """The variables of a process that knows one Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    ours = {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return kept | ours


def fetch(endpoint: str, home: Path, code: str = FETCH, *, patience: str = SHORT) -> Fetched:
    """In a process of its own, since the client reads its environment at import."""
    ended = forked.python(code, patience, environment=told(endpoint, home), cwd=ROOT)
    return Fetched(json.loads(ended.stdout), home)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with served() as address:
        yield address


def test_each_ill_server_has_the_right_outcome_in_time(
    endpoint: str, tmp_path: Path, rng: random.Random, figures: Figures
) -> None:
    """In plain runs a third of them, and of those that take twenty seconds one in every fourth run."""
    patience = dict.fromkeys(GOOD_ENDS, SHORT) | {mode: seconds for mode, (seconds, _) in BAD_ENDS.items()}
    drawn = list(patience)
    if not (SLOW or SOAK):
        slow = ["slow", *(mode for mode in BAD_ENDS if patience[mode] == LONG)]
        drawn = [
            word
            for ends, most in ((GOOD_ENDS, 2), (BAD_ENDS, 5))
            for word in rng.sample(sorted({*ends} - {*slow}), most)
        ]
        drawn += rng.sample(slow, int(rng.random() < 0.25))
    order = sorted(drawn, key=lambda mode: -float(patience[mode]))  # the patient ones first: they only wait
    for mode in order:
        (tmp_path / mode).mkdir()
    with ThreadPoolExecutor(8) as pool:
        ended = pool.map(
            lambda mode: fetch(f"{endpoint}/{mode.replace(' ', '%20')}", tmp_path / mode, patience=patience[mode]),
            order,
        )
        ends = dict(zip(order, ended, strict=True))
    wrong = []
    for mode, found in ends.items():
        said, message = found.said, str(found.said.get("message", ""))
        if mode in GOOD_ENDS:
            is_right = said["code"] == 0 and Path(said["path"]).read_bytes() == CONTENT and len(found.kept) == 1
        else:
            words = BAD_ENDS[mode][1]
            is_right = said["code"] == 7 and all(word in message for word in words) and not found.kept
            is_right &= ("not retryable" in message) == ("not retryable" in words) and "\n" not in message
        if not is_right or said["seconds"] > 60:
            wrong.append(f"{mode}: {said}, kept {found.kept}")
    figures(
        "G",
        servers=len(ends),
        wrong=len(wrong),
        wrong_bytes=sum(bool(found.kept) for mode, found in ends.items() if mode in BAD_ENDS),
    )
    assert not wrong, "\n".join(wrong)


def test_a_killed_client_leaves_nothing_that_the_next_one_believes(
    endpoint: str, tmp_path: Path, figures: Figures
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, LONG],
        env=told(f"{endpoint}/stall", tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    under_way = wait_for(lambda: list(tmp_path.rglob("*.incomplete")))
    assert under_way, "nothing was under way to be killed"
    process.kill()
    process.wait()
    assert wait_for(lambda: not list(tmp_path.rglob("*.incomplete"))), "its helper works on, or left a part behind"
    found = fetch(f"{endpoint}/ok", tmp_path)
    figures("G", servers=1, killed_clients=1)
    assert found.said["code"] == 0 and Path(found.said["path"]).read_bytes() == CONTENT and len(found.kept) == 1


def wait_for(what: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def test_a_warm_cache_asks_nobody_and_a_rotten_one_is_noticed(endpoint: str, tmp_path: Path, figures: Figures) -> None:
    with contextlib.closing(socket.socket()) as nobody:  # bound, never listening
        nobody.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        path = Path(fetch(f"{endpoint}/ok", tmp_path).said["path"])
        asked = IllHub.requests.total()
        assert fetch(dead, tmp_path).said["path"] == str(path) and IllHub.requests.total() == asked
        path.resolve().write_bytes(FLIPPED)
        rotten = fetch(dead, tmp_path)
    figures("G", warm_requests=IllHub.requests.total() - asked)
    assert rotten.said["code"] == 7 and "wrong content" in rotten.said["message"] and not rotten.kept


def test_the_naive_client_takes_the_flipped_byte(endpoint: str, tmp_path: Path, figures: Figures) -> None:
    found = fetch(f"{endpoint}/flip", tmp_path, NAIVE)
    figures("G", naive_wrong_bytes=1)
    assert Path(found.said["path"]).read_bytes() == FLIPPED, "this proves nothing: the client itself refuses"
