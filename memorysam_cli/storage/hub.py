"""Files from the Hugging Face Hub that are what was published: the Hub's own client compares only sizes."""

from __future__ import annotations

import errno
import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memorysam_cli.errors import NetworkError
from memorysam_cli.storage import atomic

_LOCAL = "or give a local file as model.base_weights"
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def fetch(repo: str, filename: str, *, sha256: str, show_progress: bool = True) -> Path:
    """A file of a Hub repository, from the cache where it is there, downloaded otherwise, verified always.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are honoured. A verified
    cached file costs no request.

    Args:
        repo: such as ``facebook/sam2-hiera-tiny``.
        filename: the file's path in the repository.
        sha256: of its content, in hex.
        show_progress: whether the Hub's client draws its bar on stderr.

    Returns:
        The path in the cache.

    Raises:
        NetworkError: "retryable" or "not retryable", tries and seconds, what to do. A file with another hash has
            been removed from the cache.
        EnvironmentFault: the cache cannot be written.
    """
    # Imported here: half a second, and it reads the environment at import.
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not show_progress:
        disable_progress_bars()
    what = f"{repo}/{filename}"
    cached = huggingface_hub.try_to_load_from_cache(repo, filename)
    if isinstance(cached, str):
        return _verified(Path(cached), what, sha256=sha256, remedy="retryable: the same command downloads it afresh")
    with _network_faults(what, Path(huggingface_hub.constants.HF_HUB_CACHE)):
        path = Path(huggingface_hub.hf_hub_download(repo, filename))
    remedy = "not retryable: what the server sends is not the published file; check HF_ENDPOINT and proxies"
    return _verified(path, what, sha256=sha256, remedy=f"{remedy}, {_LOCAL}")


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
    raise NetworkError(f"{what}: wrong content (SHA-256 {got}, expected {sha256}), removed from the cache; {remedy}")


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
                raise NetworkError(f"{what}: {_reason(error)} ({effort}), {_LOCAL}") from error
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
