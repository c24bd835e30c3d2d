"""A lock for folders where the kernel's may lie: a file that only one can create, and that its owner keeps young.

On Lustre, NFS and their like ``flock`` may not exist, or be granted to everybody. Creating a file that must not exist
is one process's right there, too; but nothing removes it when its owner is killed. So the owner touches it again and
again, and one that has been silent for long, or is known to be dead, has lost it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from memorysam_cli.storage import proc

NAME = ".lock-owner"
BEAT_S, SILENCE_S = 10.0, 60.0
"""How often the owner says that it lives, and after what silence it counts as dead."""
SETTLE_S = 0.5
"""How long a new marker must stand: of two that came at once, both may have removed a dead one, and one a new one."""
_SIGNING_S, _SIGNING_TRIES = 0.2, 10
LOST_CODE = 9
_LOCAL = {
    "apfs", "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "jfs", "ntfs3", "overlay", "ramfs",
    "reiserfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
}  # fmt: skip
"""File systems of one machine, where the kernel's lock is the truth."""


class Taken(Exception):
    """Another run holds the marker; ``record`` is what it wrote there, empty if it has not yet."""

    def __init__(self, record: dict[str, Any], *, silence: float) -> None:
        super().__init__(f"silent for {silence:.0f} s")
        self.record, self.silence = record, max(silence, 0.0)


def is_needed(folder: Path) -> bool:
    """Whether a folder may be on several machines at once, so that one kernel's lock is not enough."""
    kind = proc.file_system(folder)
    return kind is not None and kind not in _LOCAL


def is_dead(record: dict[str, Any]) -> bool:
    """Whether the process that wrote a record is known to be gone; its number may live again."""
    return _is_of_this_kernel(record) and proc.started(record["pid"]) != record.get("started")


def _is_of_this_kernel(record: dict[str, Any]) -> bool:
    here = proc.here()
    return here is not None and record.get("where") == here and isinstance(record.get("pid"), int)


class Marker:
    """The owner's side of a marker.

    Args:
        folder: that is owned.
        record: who owns it; its bytes are never twice the same.
    """

    def __init__(self, folder: Path, record: bytes) -> None:
        self.path, self._record = folder / NAME, record
        self._over = threading.Event()

    def take(self) -> None:
        """Own the folder from now on.

        Raises:
            Taken: somebody else does.
            OSError: the file cannot be written.
        """
        if not self._create():
            self._refuse_living()
            self.path.unlink(missing_ok=True)
            if not self._create():
                self._refuse_living()
                raise Taken({}, silence=0.0)
        time.sleep(SETTLE_S)
        if not self._is_ours():
            self._refuse_living()
            raise Taken({}, silence=0.0)
        threading.Thread(target=self._beat, name="marker", daemon=True).start()

    def leave(self) -> None:
        """Free the folder."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def _create(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, self._record)
            os.fsync(descriptor)  # other machines see it now
        except OSError:
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def _is_ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._record
        except FileNotFoundError:
            return False

    def _refuse_living(self) -> None:
        """Refuse a marker whose owner lives, or may live; one that has gone in the meantime is no owner."""
        with contextlib.suppress(FileNotFoundError):
            for _ in range(_SIGNING_TRIES):
                record, silence = self._look()
                if record or silence >= _SIGNING_S:
                    break
                time.sleep(_SIGNING_S / _SIGNING_TRIES)  # its owner has just made it, and not signed yet
            is_silent = silence >= SILENCE_S and not _is_of_this_kernel(record)
            if not (is_dead(record) or is_silent):
                raise Taken(record, silence=silence)

    def _look(self) -> tuple[dict[str, Any], float]:
        """What a marker says, and for how many seconds its owner has been silent."""
        with self.path.open("rb") as stream:
            touched, content = os.fstat(stream.fileno()).st_mtime, stream.read()
        record: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            found = json.loads(content)
            record = found if isinstance(found, dict) else {}
        return record, self._now() - touched

    def _now(self) -> float:
        """The file system's own clock: machines differ."""
        probe = self.path.with_name(f"{NAME}.{os.getpid()}-{threading.get_ident()}")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT, 0o666))
        os.utime(probe)
        touched = probe.stat().st_mtime
        probe.unlink(missing_ok=True)
        return touched

    def _beat(self) -> None:
        """Keep the marker young; without it there is another owner, and two must not go on."""
        while not self._over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a network file system may be away for a while
                if self._is_ours():
                    os.utime(self.path)
                elif not self._over.is_set():
                    _end(self.path)


def _end(path: Path) -> None:
    with contextlib.suppress(OSError):
        words = (
            f"memorysam: error [{LOST_CODE}]: {path}: was taken over by another run after a long silence of this one\n"
        )
        os.write(2, words.encode(errors="backslashreplace"))
    os._exit(LOST_CODE)
