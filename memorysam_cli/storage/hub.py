"""Verified downloads from the Hugging Face Hub, whose own client compares only sizes.

The client works in a child process (:func:`main`). With a stalled or very slow server it waits for minutes. The process
is therefore stopped if no data arrive, and leaves nothing behind. Its answer is one line of JSON: the path in the
cache, or an exit code with its message.

Uploads are one commit or nothing. Errors become one line, and tokens are never printed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.errors import EnvironmentFault, MemorySamError, NetworkError, UsageError
from memorysam_cli.storage import atomic, children
from memorysam_cli.text import shown

LOCAL = "or give a local file: --set model.base_weights=FILE"
PIECE_BYTES = 65_536
"""Size of the pieces of a download on the disk; with the client's own 10 MB, a slow download would seem dead for
minutes."""
PATIENCE_S = 45.0
"""Seconds without a piece of ``PIECE_BYTES``; a download that makes progress may take hours."""
MAX_BYTES = 4_000_000_000
"""Largest size of a file: more than four times that of the largest file that we need."""
_POLL_S = 0.1
_CLEAN_UP_S = 5.0
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
_KINDS = {kind.exit_code: kind for kind in (NetworkError, EnvironmentFault)}

CARD = "README.md"
_NAME = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
"""Pattern of an owner or a repository."""
_LONGEST = 96
UPLOAD_PATIENCE_S = 120.0
"""Seconds without a byte, per attempt; the Hub's client itself would wait forever."""


ADDRESS = "hf://"
"""Prefix of OWNER/NAME[/FILE], wherever a weights file may be given."""
OURS = "best.safetensors"
"""The default file of a repository from ``weights push``: its name in training."""


def local_path(file: str | os.PathLike[str]) -> Path:
    """The local path of a file, possibly on the Hub, ``hf://OWNER/NAME[/FILE]``; downloaded if new or changed.

    Args:
        file: a path, or such an address; also in the form of a path, with one slash less.

    Returns:
        The path itself, or that in the Hub's cache.

    Raises:
        UsageError: the address has no repository.
        NetworkError: as :func:`fetch`.
        EnvironmentFault: as :func:`fetch`.
    """
    address = parse_address(file, usual=OURS)
    return Path(file) if address is None else fetch(*address, sha256=None)


def parse_address(file: str | os.PathLike[str], *, usual: str) -> tuple[str, str] | None:
    """Repository and file of an address; None for anything else.

    Args:
        file: as in :func:`local_path`.
        usual: the file's name if the address has none.

    Raises:
        UsageError: the address has no repository, or no file in it.
    """
    text = os.fspath(file)
    if not text.startswith(ADDRESS[:-1]):
        return None
    owner, _, rest = text.removeprefix(ADDRESS[:-1]).lstrip("/").partition("/")
    name, _, filename = rest.partition("/")
    refuse_name(f"{owner}/{name}")
    filename = filename or usual
    if not all(part.strip(".") and part.isprintable() and "\\" not in part for part in filename.split("/")):
        raise UsageError(f"{shown(text)}: names no file; give hf://OWNER/NAME/FILE")
    return f"{owner}/{name}", filename


def fetch(
    repo: str, filename: str, *, sha256: str | None, show_progress: bool = True, patience_s: float = PATIENCE_S
) -> Path:
    """A file of a Hub repository, from the cache or downloaded, always verified.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HUB_ETAG_TIMEOUT`` and
    ``HF_HUB_DOWNLOAD_TIMEOUT`` (seconds of silence per attempt) are honored. A verified cached file needs no request.

    Args:
        repo: such as ``facebook/sam2-hiera-tiny``.
        filename: the file's path in the repository.
        sha256: of its content, in hex, in any revision. None: the newest revision, or the cache if the Hub cannot be
            reached.
        show_progress: whether the Hub's client draws its bar on stderr.
        patience_s: seconds within which data must arrive, over all of the client's attempts; at least the two time-outs
            above.

    Returns:
        The path in the cache.

    Raises:
        NetworkError: "retryable" or "not retryable", attempts and seconds, what to do. A file with another hash has
            been removed from the cache.
        EnvironmentFault: the cache cannot be written.
    """
    # Imported here: half a second, and it reads the environment at import.
    import huggingface_hub
    from huggingface_hub import constants

    what = f"{repo}/{filename}"
    cached = huggingface_hub.try_to_load_from_cache(repo, filename)
    if isinstance(cached, str) and sha256 is not None:
        return _verified(Path(cached), what, sha256=sha256, remedy="retryable: the same command downloads it afresh")
    patience = max(patience_s, constants.HF_HUB_ETAG_TIMEOUT + 5, constants.HF_HUB_DOWNLOAD_TIMEOUT + 5)
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    path = _downloaded(repo, filename, folder=folder, show_progress=show_progress, patience=patience)
    if sha256 is None:
        return path
    remedy = "not retryable: what the server sends is not the published file; check HF_ENDPOINT and proxies"
    return _verified(path, what, sha256=sha256, remedy=f"{remedy}, {LOCAL}")


def _downloaded(repo: str, filename: str, *, folder: Path, show_progress: bool, patience: float) -> Path:
    """The path in the cache of a file downloaded by the child process."""
    what, begun = f"{repo}/{filename}", time.monotonic()
    bar = "bar" if show_progress else "quiet"
    process = children.start(__name__, repo, filename, bar, environment=os.environ, show_errors=True)
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
                    f"{what}: the server stalls ({effort}); retryable: run the same command later, {LOCAL}"
                )
        assert process.stdout is not None
        return _answer(process.stdout.read(), what, code=process.returncode)
    finally:
        children.end(process, gently_s=_CLEAN_UP_S)


def _answer(line: bytes, what: str, *, code: int) -> Path:
    try:
        answer = json.loads(line)
    except ValueError:
        end = children.signal_name(code) if code < 0 else f"exit code {code}"
        raise EnvironmentFault(
            f"{what}: the process that downloads it ended by {end}; run the same command again"
        ) from None
    if "path" in answer:
        return Path(answer["path"])
    raise _KINDS[answer["code"]](answer["message"])


class _Arrived:
    """The progress of a download, seen from outside the client; data that are downloaded again do not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "blobs"
        self.sizes: dict[str, int] = {}
        self.at = time.monotonic()

    @property
    def most(self) -> int:
        """Bytes of the largest unfinished file."""
        return max(self.sizes.values(), default=0)

    def seconds_since(self) -> float:
        """Seconds since an unfinished file became larger than ever before."""
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
    """``path`` if its hash is right; otherwise it is removed from the cache."""
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


def main(arguments: list[str]) -> None:
    """The child process: download; the arguments are repository, file, and ``bar`` or ``quiet``."""
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
    """End by an exception, so that the client removes unfinished files; a second signal ends at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(143)


def _download(repo: str, filename: str, *, show_progress: bool) -> Path:
    # With its own protocol, Xet, the client may write nothing for minutes, so that a slow download looks like a
    # stalled one.
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
    """Turn all errors of the Hub's client into one line about ``what``, or about the cache at ``path``."""
    retries = _Retries()
    logger = _quiet_client()
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
                raise NetworkError(f"{what}: {_download_reason(error)} ({effort}), {LOCAL}") from error
    finally:
        logger.removeHandler(retries)


def _quiet_client() -> logging.Logger:
    """The client's logger, without its handler that prints each attempt."""
    from huggingface_hub.utils.logging import get_logger

    get_logger()  # creates that handler, which the client would create at its first message
    logger = logging.getLogger("huggingface_hub")
    for handler in logger.handlers:
        handler.setLevel(logging.ERROR)
    return logger


class _Retries(logging.Handler):
    """Counts the failed requests that the client logs; it logs neither the first nor the last."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        self.count += "thrown while requesting" in text or "Trying to resume" in text


def _download_reason(error: Exception) -> str:
    """What happened, whether to retry, and what to do."""
    from huggingface_hub import errors

    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return _download_status(int(status))
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "not in the cache, and HF_HUB_OFFLINE forbids to fetch it; not retryable: allow the network"
        if isinstance(cause, errors.FileMetadataError):
            return "the answer is not the Hub's (a login page or a proxy?); retryable: open the network first"
    reason = " ".join(str(causes[-1]).split())[:160] or type(causes[-1]).__name__
    return f"no connection or a broken one: {reason}; retryable: run the same command again"


def _download_status(status: int) -> str:
    if status in {401, 403}:
        return f"HTTP {status}, no such repository or not allowed; not retryable: check the name and HF_TOKEN"
    if status == 404:
        return "HTTP 404, no such file; not retryable: check the names and HF_ENDPOINT"
    if status == 429 or status >= 500:
        return f"HTTP {status}, the server is busy or broken; retryable: run the same command later"
    return f"HTTP {status}; not retryable: check HF_ENDPOINT and proxies"


@dataclass(frozen=True)
class Upload:
    """Files for one repository.

    Attributes:
        repo: such as ``user/name``.
        files: name in the repository → a file, or its content.
        private: whether a new repository is visible only to its owner; an existing one does not change.
        replaces_card: whether a different existing README.md may be replaced.
    """

    repo: str
    files: Mapping[str, Path | bytes]
    private: bool = False
    replaces_card: bool = False


def refuse_name(repo: str) -> None:
    """Refuse a name that is not ``owner/name``.

    Raises:
        UsageError: it is not.
    """
    owner, slash, name = repo.partition("/")
    is_one = slash and len(repo) <= _LONGEST and all(_NAME.fullmatch(part) for part in (owner, name))
    if not is_one or ".." in repo or "--" in repo or name.endswith(".git"):
        raise UsageError(
            f"{shown(repo)}: is not a repository of the Hub; give OWNER/NAME, such as alice/memorysam-deliver"
        )


def send(upload: Upload, *, show_progress: bool = True) -> str:
    """Create the repository if necessary, and commit the files.

    ``HF_ENDPOINT``, ``HF_TOKEN`` (or the login of ``hf auth login``) and ``HF_HUB_OFFLINE`` are honored.

    Args:
        upload: the files and the repository.
        show_progress: whether the Hub's client draws its bars on stderr.

    Returns:
        The commit's address.

    Raises:
        EnvironmentFault: offline, or there is no token.
        NetworkError: "retryable" or "not retryable", and what to do; nothing was committed.
        UsageError: there is a different README.md, which may not be replaced.
    """
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.HF_HUB_OFFLINE:
        raise EnvironmentFault(f"{upload.repo}: HF_HUB_OFFLINE forbids to send anything; unset it and try again")
    token = huggingface_hub.get_token()
    if token is None:
        raise EnvironmentFault(
            f"{upload.repo}: there is no token of the Hugging Face Hub; set HF_TOKEN to one that may write, or run: "
            "hf auth login"
        )
    if not show_progress:
        disable_progress_bars()
    api = HfApi(token=token)
    with _patient(huggingface_hub.get_session()), _upload_faults(upload.repo, token):
        _refuse_other_card(upload, _card_there(api, upload.repo))
        api.create_repo(upload.repo, private=upload.private or None, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        done: Any = api.create_commit(upload.repo, operations, commit_message="Upload with memorysam")
    return str(done.commit_url)


def _card_there(api: Any, repo: str) -> str | None:
    """The README.md of a repository; None if there is none."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = api.hf_hub_download(repo, CARD)
    except LocalEntryNotFoundError:  # the server was not reached, so this is unknown
        raise
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _refuse_other_card(upload: Upload, there: str | None) -> None:
    ours = upload.files.get(CARD)
    differs = isinstance(ours, bytes) and there is not None and there.strip() != ours.decode().strip()
    if differs and not upload.replaces_card:
        raise UsageError(
            f"{upload.repo}: has a {CARD} of its own that differs; nothing was sent; --replace-card replaces it, "
            "--no-card leaves it and sends the rest"
        )


@contextmanager
def _patient(client: Any) -> Iterator[None]:
    """Set time limits, so that a stalled server is given up."""
    before, client.timeout = client.timeout, UPLOAD_PATIENCE_S
    try:
        yield
    finally:
        client.timeout = before


@contextmanager
def _upload_faults(repo: str, token: str) -> Iterator[None]:
    """Turn all errors of the Hub's client into one line."""
    _quiet_client()
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise NetworkError(f"{repo}: {_reason(error).replace(token, '…')}; nothing was committed") from None


def _reason(error: Exception) -> str:
    """What happened, whether to retry, and what to do."""
    causes = [error]
    while (below := causes[-1].__cause__ or causes[-1].__context__) is not None and isinstance(below, Exception):
        causes.append(below)
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return _status_reason(int(status))
    reason = " ".join(str(causes[-1]).split())[:160] or type(causes[-1]).__name__
    return f"no connection or a broken one: {reason}; retryable: run the same command again"


def _status_reason(status: int) -> str:
    if status == 401:
        return "HTTP 401, the token is not taken; not retryable: set HF_TOKEN to a valid one, or run: hf auth login"
    if status == 403:
        return "HTTP 403, the token may not write there; not retryable: check the owner's name and the token's rights"
    if status == 404:
        return "HTTP 404, no such owner; not retryable: check the name and HF_ENDPOINT"
    if status in {402, 413, 507}:
        return f"HTTP {status}, too large for the account; not retryable: make room there"
    if status == 429 or status >= 500:
        return f"HTTP {status}, the server is busy or broken; retryable: run the same command later"
    return f"HTTP {status}; not retryable: check the names, HF_ENDPOINT and proxies"
