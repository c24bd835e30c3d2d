"""Files to the Hugging Face Hub, in one commit or not at all; faults become one line, and no token is ever shown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memorysam_cli.errors import EnvironmentFault, NetworkError, UsageError
from memorysam_cli.text import shown

CARD = "README.md"
_NAME = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)
"""Of an owner or a repository, as the Hub takes them."""
_LONGEST = 96
PATIENCE_S = 120.0
"""Seconds without a byte, in one try; the Hub's client itself would wait for ever."""


@dataclass(frozen=True)
class Upload:
    """Files for one repository.

    Attributes:
        repo: such as ``user/name``.
        files: name in the repository → a file, or its content.
        private: whether only its owner sees a repository that this makes; one that is there stays as it is.
        replaces_card: whether a README.md that is there and differs may be replaced.
    """

    repo: str
    files: Mapping[str, Path | bytes]
    private: bool = False
    replaces_card: bool = False


def refuse_name(repo: str) -> None:
    """Refuse what is no ``owner/name``.

    Raises:
        UsageError: it is none.
    """
    owner, slash, name = repo.partition("/")
    is_one = slash and len(repo) <= _LONGEST and all(_NAME.fullmatch(part) for part in (owner, name))
    if not is_one or ".." in repo or "--" in repo or name.endswith(".git"):
        raise UsageError(
            f"{shown(repo)}: is no repository of the Hub; give OWNER/NAME, such as alice/memorysam-deliver"
        )


def send(upload: Upload, *, show_progress: bool = True) -> str:
    """Make the repository if need be, and commit the files.

    ``HF_ENDPOINT``, ``HF_TOKEN`` (or the login of ``hf auth login``) and ``HF_HUB_OFFLINE`` are honoured.

    Args:
        upload: what, and where to.
        show_progress: whether the Hub's client draws its bars on stderr.

    Returns:
        The commit's address.

    Raises:
        EnvironmentFault: offline, or there is no token.
        NetworkError: "retryable" or "not retryable", and what to do; nothing was committed.
        UsageError: another README.md is there, and may not be replaced.
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
    with _patient(huggingface_hub.get_session()), _faults(upload.repo, token):
        _refuse_other_card(upload, _card_there(api, upload.repo))
        api.create_repo(upload.repo, private=upload.private or None, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in upload.files.items()]
        done: Any = api.create_commit(upload.repo, operations, commit_message="Upload with memorysam")
    return str(done.commit_url)


def _card_there(api: Any, repo: str) -> str | None:
    """The README.md of a repository; None where there is none."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = api.hf_hub_download(repo, CARD)
    except LocalEntryNotFoundError:  # the server was not reached: whether there is one is not known
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
    """Let a server that stalls be given up."""
    before, client.timeout = client.timeout, PATIENCE_S
    try:
        yield
    finally:
        client.timeout = before


@contextmanager
def _faults(repo: str, token: str) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise NetworkError(f"{repo}: {_reason(error).replace(token, '…')}; nothing was committed") from None


def _reason(error: Exception) -> str:
    """What happened, whether to try again, and what to do."""
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
