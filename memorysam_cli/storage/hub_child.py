"""The process that downloads from the Hub: it can be stopped whatever the server does, and leaves nothing behind then.

Its answer is one line of JSON: the path in the cache, or an exit code with its message.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from memorysam_cli.errors import MemorySamError, NetworkError
from memorysam_cli.storage import atomic, children

LOCAL = "or give a local file as model.base_weights"
PIECE_BYTES = 65_536
"""In which a download reaches the disk; the client's own 10 MB would hide for minutes that a slow one goes on."""
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def main(arguments: list[str]) -> None:
    """Download: repository, file, and ``bar`` or ``quiet``."""
    repo, filename, bar = arguments
    signal.signal(signal.SIGTERM, _stop)
    children.watch_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with children.claim_stdout() as answers:
        try:
            answer: dict[str, Any] = {"path": str(_download(repo, filename, show_progress=bar == "bar"))}
        except MemorySamError as error:
            answer = {"code": error.exit_code, "message": str(error)}
        answers.write(json.dumps(answer).encode())


def _stop(*_: object) -> None:
    """Leave by an exception, so that the client removes what it has begun; a second word ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(143)


def _download(repo: str, filename: str, *, show_progress: bool) -> Path:
    # Through its own protocol, Xet, the client writes in jumps of up to minutes, in which nobody could tell a slow
    # download from a dead one.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    constants.DOWNLOAD_CHUNK_SIZE = PIECE_BYTES
    if not show_progress:
        disable_progress_bars()
    with _network_faults(f"{repo}/{filename}", Path(constants.HF_HUB_CACHE)):
        return Path(huggingface_hub.hf_hub_download(repo, filename))


@contextmanager
def _network_faults(what: str, path: Path) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one line about ``what``, or about the cache at ``path``."""
    retries = _Retries()
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(retries)
    started = time.monotonic()
    try:
        with atomic.faults(path):
            try:
                yield
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                tries = "1 try" if retries.count == 0 else f"{1 + retries.count} tries"
                effort = f"{tries}, {time.monotonic() - started:.0f} s"
                raise NetworkError(f"{what}: {_reason(error)} ({effort}), {LOCAL}") from error
    finally:
        logger.removeHandler(retries)


class _Retries(logging.Handler):
    """Counts the failed requests that the client tells of; it tells of neither the very first nor the last."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.count += "thrown while requesting" in text or "Trying to resume" in text


def _reason(error: Exception) -> str:
    """What happened, whether to try again, and what to do."""
    from huggingface_hub import errors

    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return _status_reason(int(status))
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "not in the cache, and HF_HUB_OFFLINE forbids to fetch it; not retryable: allow the network"
        if isinstance(cause, errors.FileMetadataError):
            return "the answer is not the Hub's (a login page or a proxy?); retryable: open the network first"
    reason = " ".join(str(causes[-1]).split())[:160] or type(causes[-1]).__name__
    return f"no connection or a broken one: {reason}; retryable: run the same command again"


def _status_reason(status: int) -> str:
    if status in {401, 403}:
        return f"HTTP {status}, no such repository or not allowed; not retryable: check the name and HF_TOKEN"
    if status == 404:
        return "HTTP 404, no such file; not retryable: check the names and HF_ENDPOINT"
    if status == 429 or status >= 500:
        return f"HTTP {status}, the server is busy or broken; retryable: run the same command later"
    return f"HTTP {status}; not retryable: check HF_ENDPOINT and proxies"
