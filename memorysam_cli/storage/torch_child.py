"""The child process for untrusted torch files: it gives up its rights, and sends plain tensors back.

Its answer is one line of JSON and, if the file is good, a safetensors file after it. torch is imported only for a file
whose archive has passed the checks, so most bad files need a tenth of a second.

Before it opens a file, it gives up network, memory, time, files and other programs. On Linux the kernel enforces all of
this. On macOS there are no limits on memory and no network namespace. There, and if the kernel refuses the namespace,
Python's audit events replace them; these see only Python's own calls.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from memorysam_cli.storage import children, torch_format
from memorysam_cli.storage.torch_format import EXPORT, Attempt, Refused, most_bytes

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MEMORY = 512_000_000
"""Bytes in addition to twice the file, which is read or mapped once, and may have to be made dense."""
SECONDS = 3.0
"""Seconds of CPU time, in addition to the time for the file's bytes."""
BYTES_PER_SECOND = 50_000_000

NAMESPACE, AUDIT = "a network namespace without network", "Python's audit events alone"
_NEWUSER, _NEWNET = 0x1000_0000, 0x4000_0000
_LAST_SECONDS = 2
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.kill", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.ch",
    "os.utime", "os.putenv", "os.unsetenv", "shutil.", "ctypes.", "pty.", "signal.pthread_kill", "webbrowser.",
    "ftplib.", "smtplib.", "urllib.", "http.", "sqlite3.", "pickle.find_class", "cpython.run",
)  # fmt: skip
"""Audit events that reading tensors never raises; ``pickle.find_class`` is that of the unsafe unpickler."""


def main(arguments: list[str]) -> None:
    """Read the file in the only argument."""
    network = leave_network()  # first, because the kernel requires a single thread
    children.watch_parent(lambda: os._exit(1))
    path = Path(arguments[0])
    with children.claim_stdout() as answers:
        try:
            tensors = read(path)
        except (Refused, Attempt) as error:
            _say(answers, {"refused": str(error)})
        except MemoryError:
            _say(answers, {"refused": "asks for more memory than a file of its size may; refused as a possible bomb"})
        except Exception as error:  # an error of this process itself, such as a failed import of torch
            _say(answers, {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        else:
            _send(answers, tensors, network=network)
    os._exit(0)  # nothing that the file may have registered runs at exit


def read(path: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a file; afterwards this process can do almost nothing else.

    Raises:
        Refused: names the reason.
    """
    size = path.stat().st_size
    seconds = SECONDS + size / BYTES_PER_SECOND
    with bounded(memory=MEMORY, seconds=seconds):
        is_zip = torch_format.check_archive(path)
    from memorysam_cli.storage import foreign

    confine(memory=MEMORY + 2 * size, seconds=seconds)
    tried = watch_calls()
    found = foreign.parse(path, is_zip=is_zip)
    if tried:
        raise Refused(f"made Python try {tried[0]}; refused. Instead {EXPORT}")
    if (total := sum(tensor.nbytes for tensor in found.values())) > most_bytes(size):
        raise Refused(f"its tensors share memory and claim {total} bytes, the file has {size}; refused")
    return found


def _send(answers: IO[bytes], tensors: Mapping[str, torch.Tensor], *, network: str) -> None:
    from memorysam_cli.storage.tensors import pieces

    data = pieces(tensors, {})
    _say(answers, {"network": network})
    for piece in data:
        answers.write(piece)
    answers.flush()


def _say(answers: IO[bytes], answer: Mapping[str, str]) -> None:
    answers.write(json.dumps(answer).encode() + b"\n")
    answers.flush()


def leave_network() -> str:
    """Leave the network, if the kernel allows it; call it while the process has one thread.

    Returns:
        :data:`NAMESPACE` or :data:`AUDIT`: what keeps the process from the network after a call of :func:`watch_calls`.
    """
    if not sys.platform.startswith("linux"):
        return AUDIT
    user, group = os.getuid(), os.getgid()
    with suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None, use_errno=True).unshare
        if unshare(_NEWNET) == 0:
            return NAMESPACE
        # Allowed for every user, unless the kernel forbids it; root would lose its rights on others' files.
        if user != 0 and unshare(_NEWUSER | _NEWNET) == 0:
            children.tell_kernel("uid_map", f"{user} {user} 1")
            children.tell_kernel("setgroups", "deny")
            children.tell_kernel("gid_map", f"{group} {group} 1")
            return NAMESPACE
    return AUDIT


@contextmanager
def bounded(*, memory: int, seconds: float) -> Iterator[None]:
    """Limit the additional memory and CPU time of a block, where possible."""
    if resource is None:
        yield
        return
    before = [(kind, resource.getrlimit(kind)) for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    _bound(memory=memory, seconds=seconds, for_good=False)
    try:
        yield
    finally:
        for kind, limits in before:
            resource.setrlimit(kind, limits)


def confine(*, memory: int, seconds: float) -> None:
    """Limit memory and time permanently, forbid writing to files and starting programs, if the kernel supports it."""
    if resource is None:
        return
    _bound(memory=memory, seconds=seconds, for_good=True)
    for kind in ("RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_NPROC"):  # the last one limits all users but root
        with suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, kind), (0, 0))


def _bound(*, memory: int, seconds: float, for_good: bool) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = [(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))]
    if (taken := _address_space()) is not None:
        wanted.append((resource.RLIMIT_AS, taken + memory))
    for kind, value in wanted:
        soft, hard = resource.getrlimit(kind)
        least = min([value, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)])
        with suppress(OSError, ValueError):
            # The kernel sends a signal at the first limit of time, and kills at the second.
            last = least + _LAST_SECONDS if kind == resource.RLIMIT_CPU else least
            resource.setrlimit(kind, (least, last if for_good and (last < hard or hard < 0) else hard))


def _address_space() -> int | None:
    """Bytes of this process's address space, on Linux."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def watch_calls() -> list[str]:
    """Permanently refuse every Python call that reading tensors never needs.

    Returns:
        A list of attempts, in case the exception was caught.
    """
    tried: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        if is_writing or event.startswith(_REFUSED):
            tried.append("writing a file" if is_writing else event)
            raise Attempt(tried[-1])

    sys.addaudithook(hook)
    return tried
