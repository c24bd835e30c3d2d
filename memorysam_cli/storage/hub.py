"""Files from the Hugging Face Hub that are what was published: the Hub's own client compares only sizes.

The client works in a process of its own (:mod:`memorysam_cli.storage.hub_child`). It waits for minutes where a server
stalls, asks for patience, or hands out a byte now and then; its process is stopped when nothing comes of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

from memorysam_cli.errors import EnvironmentFault, NetworkError
from memorysam_cli.storage import atomic, children, hub_child
from memorysam_cli.text import shown

PATIENCE_S = 45.0
"""Without a piece of :data:`~memorysam_cli.storage.hub_child.PIECE_BYTES`; a download that goes on may take hours."""
MAX_BYTES = 4_000_000_000
"""More than four times the largest file that we ask for."""
_POLL_S = 0.1
_CLEAN_UP_S = 5.0
_KINDS = {fault.exit_code: fault for fault in (NetworkError, EnvironmentFault)}


def fetch(repo: str, filename: str, *, sha256: str, show_progress: bool = True, patience_s: float = PATIENCE_S) -> Path:
    """A file of a Hub repository, from the cache where it is there, downloaded otherwise, verified always.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HUB_ETAG_TIMEOUT`` and
    ``HF_HUB_DOWNLOAD_TIMEOUT`` (seconds of silence in one try) are honoured. A verified cached file costs no request.

    Args:
        repo: such as ``facebook/sam2-hiera-tiny``.
        filename: the file's path in the repository.
        sha256: of its content, in hex; whatever revision has it.
        show_progress: whether the Hub's client draws its bar on stderr.
        patience_s: seconds in which something must arrive, over all of the client's tries; at least those of the two
            timeouts above, where they are longer.

    Returns:
        The path in the cache.

    Raises:
        NetworkError: "retryable" or "not retryable", tries and seconds, what to do. A file with another hash has
            been removed from the cache.
        EnvironmentFault: the cache cannot be written.
    """
    # Imported here: half a second, and it reads the environment at import.
    import huggingface_hub
    from huggingface_hub import constants

    what = f"{repo}/{filename}"
    cached = huggingface_hub.try_to_load_from_cache(repo, filename)
    if isinstance(cached, str):
        return _verified(Path(cached), what, sha256=sha256, remedy="retryable: the same command downloads it afresh")
    patience = max(patience_s, constants.HF_HUB_ETAG_TIMEOUT + 5, constants.HF_HUB_DOWNLOAD_TIMEOUT + 5)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    path = _downloaded(repo, filename, folder=folder, show_progress=show_progress, patience=patience)
    remedy = "not retryable: what the server sends is not the published file; check HF_ENDPOINT and proxies"
    return _verified(path, what, sha256=sha256, remedy=f"{remedy}, {hub_child.LOCAL}")


def _downloaded(repo: str, filename: str, *, folder: Path, show_progress: bool, patience: float) -> Path:
    """The path in the cache of what the client's process has downloaded there."""
    what, begun = f"{repo}/{filename}", time.monotonic()
    bar = "bar" if show_progress else "quiet"
    process = children.start(hub_child.__name__, repo, filename, bar, environment=os.environ, show_errors=True)
    arrived = _Arrived(folder)
    try:
        while True:
            try:
                process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                silent = arrived.seconds_since()
            if arrived.most > MAX_BYTES:
                raise NetworkError(f"{what}: more than {MAX_BYTES} bytes; not retryable: check HF_ENDPOINT and proxies")
            if silent > patience:
                effort = f"{time.monotonic() - begun:.0f} s, the last {silent:.0f} s without a piece of the file"
                raise NetworkError(
                    f"{what}: the server stalls ({effort}); retryable: run the same command later, {hub_child.LOCAL}"
                )
        assert process.stdout is not None
        return _answer(process.stdout.read(), what, code=process.returncode)
    finally:
        children.end(process, gently_s=_CLEAN_UP_S)


def _answer(said: bytes, what: str, *, code: int) -> Path:
    try:
        answer = json.loads(said)
    except ValueError:
        end = children.signal_name(code) if code < 0 else f"exit code {code}"
        raise EnvironmentFault(
            f"{what}: the process that downloads it ended by {end}; run the same command again"
        ) from None
    if "path" in answer:
        return Path(answer["path"])
    raise _KINDS[answer["code"]](answer["message"])


class _Arrived:
    """How much of a file has arrived, seen from outside the client; what arrives anew after a cut does not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "blobs"
        self.sizes: dict[str, int] = {}
        self.at = time.monotonic()

    @property
    def most(self) -> int:
        """Bytes of the largest file under way."""
        return max(self.sizes.values(), default=0)

    def seconds_since(self) -> float:
        """Seconds since a file under way became larger than it ever was."""
        for path in self.folder.glob("*.incomplete"):
            try:
                size = path.stat().st_size
            except OSError:  # done, or removed
                continue
            if size > self.sizes.get(path.name, -1):
                self.sizes[path.name] = size
                self.at = time.monotonic()
        return time.monotonic() - self.at


def _verified(path: Path, what: str, *, sha256: str, remedy: str) -> Path:
    """``path`` if its hash is right; otherwise it leaves the cache."""
    with atomic.faults(path):
        with path.open("rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got == sha256:
            return path
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
    raise NetworkError(
        f"{shown(what)}: wrong content (SHA-256 {got}, expected {sha256}), removed from the cache; {remedy}"
    )
