"""A model of a disk that loses power: what is not synced may be there, or not, or in part, in any combination.

The operations are real ones, as strace recorded them. Source: RELIABILITY §5, block C.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Inode = int
Tree = dict[str, bytes]
"""Relative path -> content of each file that can be reached."""

MOST_STATES = 4096
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(?:<(.*?)>)?")


@dataclass(frozen=True)
class Entry:
    """A name in a folder comes to mean an inode, or none; a rename is two of them in one step."""

    changes: tuple[tuple[Inode, str, Inode | None], ...]


@dataclass(frozen=True)
class Data:
    """Bytes at an offset of a file; none cuts it there."""

    inode: Inode
    offset: int
    content: bytes | None


Operation = Entry | Data


class Recording:
    """What a program did below a folder, in order, and what each fsync made durable.

    Args:
        log: of :func:`tests.faults.strace.record`.
        folder: what was there before is taken from ``before``.
        before: the files at the beginning, durable, by relative path, also in folders.
    """

    def __init__(self, log: str, folder: Path, before: Tree) -> None:
        self.root: Inode = 0
        self.folders: set[Inode] = {0}
        self.first: dict[tuple[Inode, str], Inode] = {}
        self.content: dict[Inode, bytes] = {}
        self.operations: list[Operation] = []
        self.moments: list[tuple[int, frozenset[int]]] = []
        """After each operation and each sync: how many operations there were, and which cannot be lost any more."""
        self._fresh = itertools.count(1)
        self._now: dict[tuple[Inode, str], Inode] = {}
        self._size: dict[Inode, int] = {}
        self._open: dict[int, tuple[Inode, int, bool]] = {}
        self._kept: set[int] = set()
        self._folder = str(folder)
        for name, content in before.items():
            self._existed(name.split("/"), content)
        for line in log.splitlines():
            self._take(line)

    def _existed(self, parts: list[str], content: bytes) -> None:
        """A file that was there, and durable, before the program began."""
        folder = self.root
        for part in parts[:-1]:
            if (folder, part) not in self.first:
                self.first[folder, part] = self._now[folder, part] = inode = next(self._fresh)
                self.folders.add(inode)
            folder = self.first[folder, part]
        inode = next(self._fresh)
        self.first[folder, parts[-1]] = self._now[folder, parts[-1]] = inode
        self.content[inode], self._size[inode] = content, len(content)

    def states(self, rng: random.Random, *, most: int = MOST_STATES) -> Iterator[tuple[int, Tree]]:
        """Each moment's number with each tree that a loss of power at it may leave (at most ``most`` a moment)."""
        for moment, (length, kept) in enumerate(self.moments, 1):
            loose = [number for number in range(length) if number not in kept]
            ways = [_ways(self.operations[number]) for number in loose]
            count = 1
            for each in ways:
                count *= len(each)
            chosen: Iterator[tuple[float, ...]] = itertools.product(*ways)
            if count > most:
                chosen = (tuple(rng.choice(each) for each in ways) for _ in range(most))
            for choice in chosen:
                shares = dict.fromkeys(kept, 1.0) | dict(zip(loose, choice, strict=True))
                yield moment, self._tree(shares)

    def _tree(self, shares: dict[int, float]) -> Tree:
        """What can be reached when each operation is applied to its share."""
        names, content = dict(self.first), dict(self.content)
        for number in sorted(shares):
            if not shares[number]:
                continue
            operation = self.operations[number]
            if isinstance(operation, Entry):
                for parent, name, inode in operation.changes:
                    names.pop((parent, name), None) if inode is None else names.update({(parent, name): inode})
                continue
            old = content.get(operation.inode, b"")
            if operation.content is None:
                content[operation.inode] = old[: operation.offset]
                continue
            part = operation.content[: int(len(operation.content) * shares[number])]
            old = old.ljust(operation.offset, b"\0")
            content[operation.inode] = old[: operation.offset] + part + old[operation.offset + len(part) :]
        return dict(self._walk(names, content, self.root, ""))

    def _walk(
        self, names: dict[tuple[Inode, str], Inode], content: dict[Inode, bytes], folder: Inode, prefix: str
    ) -> Iterator[tuple[str, bytes]]:
        for (parent, name), inode in names.items():
            if parent == folder and inode in self.folders:
                yield from self._walk(names, content, inode, f"{prefix}{name}/")
            elif parent == folder:
                yield prefix + name, content.get(inode, b"")

    def _take(self, line: str) -> None:
        """Turn one line of strace into operations."""
        found = _CALL.match(line)
        if found is None or int(found[3]) < 0:
            return
        call, arguments, answer = found[1], found[2], int(found[3])
        strings = [_bytes(text) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]
        paths = [self._absolute(text.decode(errors="surrogateescape"), arguments) for text in strings]
        number = re.match(r"(\d+)<", arguments)
        descriptor = int(number[1]) if number else -1
        if call == "openat":
            self._opened(paths[0], arguments, answer)
        elif call == "close":
            self._open.pop(descriptor, None)
        elif call == "write" and descriptor in self._open:
            self._written(descriptor, strings[0][:answer])
        elif call == "ftruncate" and descriptor in self._open:
            inode, size = self._open[descriptor][0], int(arguments.rsplit(",", 1)[1])
            self._do(Data(inode, size, None))
            self._size[inode] = size
        elif call in {"fsync", "fdatasync"} and descriptor in self._open:
            self._synced(self._open[descriptor][0])
        elif call == "rename" and self._is_ours(paths[0]):
            here, there = self._place(paths[0]), self._place(paths[1])
            inode = self._now.pop(here)
            self._now[there] = inode
            self._do(Entry(((*here, None), (*there, inode))))
        elif call in {"unlink", "unlinkat", "rmdir"} and self._is_ours(paths[0]):
            self._do(Entry(((*self._place(paths[0]), None),)))
            self._now.pop(self._place(paths[0]))
        elif call == "mkdir" and self._is_ours(paths[0]):
            self.folders.add(self._created(paths[0]))

    @staticmethod
    def _absolute(path: str, arguments: str) -> str:
        """A path that may be given from an open folder, as ``openat`` and ``unlinkat`` take it."""
        folder = re.match(r"(?:\d+|AT_FDCWD)<(.*?)>", arguments)
        if path.startswith("/") or folder is None:
            return path
        return f"{_bytes(folder[1]).decode() if folder[1].startswith(chr(92)) else folder[1]}/{path}"

    def _opened(self, path: str, flags: str, descriptor: int) -> None:
        if path == self._folder:
            self._open[descriptor] = (self.root, 0, False)
            return
        if not self._is_ours(path):
            return
        inode = self._now.get(self._place(path))
        if inode is None:
            inode = self._created(path)
            self._size[inode] = 0
        elif "O_TRUNC" in flags:
            self._do(Data(inode, 0, None))
            self._size[inode] = 0
        self._open[descriptor] = (inode, 0, "O_APPEND" in flags)

    def _written(self, descriptor: int, content: bytes) -> None:
        inode, offset, appends = self._open[descriptor]
        offset = self._size[inode] if appends else offset
        self._do(Data(inode, offset, content))
        self._open[descriptor] = (inode, offset + len(content), appends)
        self._size[inode] = max(self._size[inode], offset + len(content))

    def _created(self, path: str) -> Inode:
        inode = next(self._fresh)
        self._now[self._place(path)] = inode
        self._do(Entry(((*self._place(path), inode),)))
        return inode

    def _synced(self, inode: Inode) -> None:
        """A file's sync keeps its bytes, a folder's its names; neither keeps the other."""
        for number, operation in enumerate(self.operations):
            if isinstance(operation, Data):
                is_kept = operation.inode == inode
            else:
                is_kept = any(parent == inode for parent, _, _ in operation.changes)
            if is_kept:
                self._kept.add(number)
        self.moments.append((len(self.operations), frozenset(self._kept)))

    def _do(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.moments.append((len(self.operations), frozenset(self._kept)))

    def _is_ours(self, path: str) -> bool:
        return path.startswith(self._folder + "/")

    def _place(self, path: str) -> tuple[Inode, str]:
        folder, name = self.root, ""
        parts = path.removeprefix(self._folder + "/").split("/")
        for part in parts[:-1]:
            folder = self._now[folder, part]
        name = parts[-1]
        return folder, name


def _ways(operation: Operation) -> tuple[float, ...]:
    """How much of an operation may have reached the disk."""
    if isinstance(operation, Data) and operation.content:
        return (0.0, 0.5, 1.0)
    return (0.0, 1.0)


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
