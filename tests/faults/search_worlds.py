"""Block S: hostile environments that a child puts itself into, and hostile things that a path can name."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import disks

NAMELESS = 61_234
"""A user id without an entry in the password file."""
MB = 1 << 20


@dataclass(frozen=True)
class World:
    """A hostile environment.

    Attributes:
        codes: exit codes that fit it, besides the one of the calm.
        loud: exit codes in place of the calm's, of a command that writes on stdout.
        variables: of the environment; None takes one away; ``{root}`` is the try's own place.
        enter: puts this process into it; the argument is the try's own place.
        stays: whether relative paths lead to the try's files.
        is_start: only a fresh interpreter meets it: nothing of it can be put on afterwards.
        hides: streams of which nothing can be seen.
    """

    codes: frozenset[int] = frozenset()
    loud: frozenset[int] = frozenset()
    variables: Mapping[str, str | None] = field(default_factory=dict, hash=False)
    enter: Callable[[Path], None] | None = None
    stays: bool = True
    is_start: bool = False
    hides: frozenset[str] = frozenset()


def closed(*numbers: int) -> Callable[[Path], None]:
    """Streams that the caller closed."""

    def enter(_place: Path) -> None:
        for number in numbers:
            with contextlib.suppress(OSError):  # another world has closed it already
                os.close(number)

    return enter


def led_to(path: str, number: int, flags: int) -> Callable[[Path], None]:
    """A stream that leads to a file or device."""

    def enter(_place: Path) -> None:
        opened = os.open(path, flags)
        os.dup2(opened, number)
        os.close(opened)

    return enter


def unread(number: int) -> Callable[[Path], None]:
    """A stream whose reader went away."""

    def enter(_place: Path) -> None:
        reading, writing = os.pipe()
        os.dup2(writing, number)
        os.close(reading)
        os.close(writing)

    return enter


def limited(what: int, value: int) -> Callable[[Path], None]:
    """A limit of the kernel's."""

    def enter(_place: Path) -> None:
        hard = resource.getrlimit(what)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (most, most))

    return enter


def little_memory(_place: Path) -> None:
    """64 MB more than what this process has mapped, as a batch system bounds it."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + 64 * MB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def small_shared_memory(place: Path) -> None:
    """A /dev/shm of 64 KB; nothing where the kernel does not let us."""
    if disks.may_mount():
        disks.share_less(64 * 1024, keep=place)


def read_only_here(place: Path) -> None:
    """A working directory that nothing can be written below."""
    if disks.may_mount():
        disks.make_read_only(place / "here")
    else:
        (place / "here").chmod(0o555)


def removed_here(place: Path) -> None:
    """A working directory that somebody removed."""
    gone = place / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def nameless(_place: Path) -> None:
    """A user that the machine has no name for, as ``docker run --user 61234``."""
    disks.become(NAMELESS)


def no_processes(place: Path) -> None:
    """A user who may not start one more process or thread; root always may."""
    nameless(place)
    limited(resource.RLIMIT_NPROC, 1)(place)


def locked_temporary(place: Path) -> None:
    """A $TMPDIR that cannot be written."""
    (place / "tmp").chmod(0o555)
    disks.lose_rights()


OUT, ERR = frozenset({"out"}), frozenset({"err"})
MACHINE = frozenset({6})
"""The environment's exit code."""
REFUSED = frozenset({2, 6})
WORLDS: dict[str, World] = {
    "calm": World(),
    "stdin closed": World(enter=closed(0)),
    "stdout closed": World(enter=closed(1), hides=OUT),
    "stderr closed": World(enter=closed(2), hides=ERR),
    "streams closed": World(enter=closed(0, 1, 2), hides=frozenset({"out", "err"})),
    "stdin endless": World(enter=led_to("/dev/zero", 0, os.O_RDONLY)),
    "stdout full": World(loud=MACHINE, enter=led_to("/dev/full", 1, os.O_WRONLY), hides=OUT),
    "stderr full": World(enter=led_to("/dev/full", 2, os.O_WRONLY), hides=ERR),
    "stdout unread": World(loud=frozenset({141}), enter=unread(1), hides=OUT),
    "stderr unread": World(enter=unread(2), hides=ERR),
    "stdout read-only": World(enter=led_to("/dev/null", 1, os.O_RDONLY), hides=OUT),
    "tiny shm": World(codes=MACHINE, enter=small_shared_memory),
    "8 descriptors": World(codes=MACHINE, enter=limited(resource.RLIMIT_NOFILE, 8)),
    "24 descriptors": World(codes=MACHINE, enter=limited(resource.RLIMIT_NOFILE, 24)),
    "64 descriptors": World(codes=MACHINE, enter=limited(resource.RLIMIT_NOFILE, 64)),
    "no processes": World(codes=MACHINE, enter=no_processes),
    "files of 0 bytes": World(codes=MACHINE, enter=limited(resource.RLIMIT_FSIZE, 0), hides=OUT),
    "files of 4 KB": World(codes=MACHINE, enter=limited(resource.RLIMIT_FSIZE, 4096), hides=OUT),
    "little memory": World(codes=MACHINE, enter=little_memory),
    "no core": World(enter=limited(resource.RLIMIT_CORE, 0)),
    "nameless": World(enter=nameless),
    "nameless without home": World(enter=nameless, variables={"HOME": None}),
    "C locale": World(variables={"LC_ALL": "C"}),
    "POSIX locale": World(variables={"LC_ALL": "POSIX", "LANG": None}),
    "no locale": World(variables={"LC_ALL": None, "LANG": None, "LC_CTYPE": None}),
    "unknown locale": World(variables={"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY", "LANGUAGE": "xx"}),
    "plain C": World(variables={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, is_start=True),
    "ascii": World(variables={"PYTHONIOENCODING": "ascii"}),
    "ascii strict": World(variables={"PYTHONIOENCODING": "ascii:strict"}),
    "optimized": World(codes=MACHINE, variables={"PYTHONOPTIMIZE": "2"}, is_start=True),
    # GNU's OpenMP says so itself, before any program of ours runs.
    "threads abc": World(codes=REFUSED, variables={"OMP_NUM_THREADS": "abc"}, is_start=True, hides=ERR),
    "world size abc": World(codes=REFUSED, variables={"WORLD_SIZE": "abc"}),
    "world size 0": World(codes=REFUSED, variables={"WORLD_SIZE": "0", "RANK": "0"}),
    "rank -1": World(codes=REFUSED, variables={"WORLD_SIZE": "1", "RANK": "-1", "LOCAL_RANK": "x"}),
    "columns 0": World(variables={"COLUMNS": "0", "LINES": "0"}),
    "columns 1": World(variables={"COLUMNS": "1", "LINES": "1"}),
    "columns abc": World(variables={"COLUMNS": "abc", "LINES": "-3"}),
    "terminal odd": World(variables={"TERM": "odd"}),
    "no terminal": World(variables={"TERM": None, "NO_COLOR": None}),
    "color": World(variables={"NO_COLOR": None, "FORCE_COLOR": "1"}),
    "no home": World(variables={"HOME": None}),
    "home missing": World(variables={"HOME": "{root}/nowhere/home"}),
    "home a file": World(variables={"HOME": "{root}/here/tiny.yaml"}),
    "home read-only": World(variables={"HOME": "/proc/1"}),
    "tmp missing": World(codes=MACHINE, variables={"TMPDIR": "{root}/nowhere/tmp"}),
    "tmp a file": World(codes=MACHINE, variables={"TMPDIR": "/dev/null"}),
    "tmp read-only": World(codes=MACHINE, enter=locked_temporary),
    "here removed": World(codes=frozenset({2, 3, 5, 6}), enter=removed_here, stays=False),
    "here read-only": World(codes=MACHINE, enter=read_only_here),
    "data root odd": World(codes=frozenset({2, 3}), variables={"MEMORYSAM_DATA": "/dev/zero"}),
    "extension odd": World(codes=frozenset({2, 3}), variables={"MEMORYSAM_EXTEND": "/dev/null"}),
    "debug": World(variables={"MEMORYSAM_DEBUG": "1"}, hides=ERR),
    "dates odd": World(variables={"TZ": "Nowhere/At:all", "SOURCE_DATE_EPOCH": "abc"}),
    "gpus odd": World(codes=REFUSED, variables={"CUDA_VISIBLE_DEVICES": "abc", "PYTORCH_CUDA_ALLOC_CONF": "odd"}),
}
"""By name; what fits each besides the calm's own exit code."""


def in_order(names: Iterable[str]) -> list[str]:
    """Worlds in the order in which they can be entered: mounts first, then what takes the right to mount away.

    Few descriptors come last, for entering takes some.
    """
    return sorted(
        names,
        key=lambda name: (
            name not in _MOUNTS,
            name.endswith("descriptors"),
            _LOSE_RIGHTS.index(name) if name in _LOSE_RIGHTS else -1,
        ),
    )


_MOUNTS = ("tiny shm", "here read-only")
NAMELESS_WORLDS = ("nameless", "nameless without home", "no processes")
"""There a process keeps the right to read everything (``disks.become``), also what is locked."""
_LOSE_RIGHTS = (*NAMELESS_WORLDS, "tmp read-only")


Make = Callable[[Path, Path | None], str]
"""Puts a hostile thing below a folder, or the good file under an odd name; returns the path to type."""


def named(name: str) -> Make:
    """The good file or folder, under an odd name."""

    def make(here: Path, good: Path | None) -> str:
        if good is not None and good.exists():
            good.rename(here / name)
        return name

    return make


def device(path: str) -> Make:
    """What the machine has already."""
    return lambda _here, _good: path


def _empty(here: Path, _good: Path | None) -> str:
    (here / "thing").touch()
    return "thing"


def _folder(here: Path, _good: Path | None) -> str:
    (here / "thing").mkdir()
    return "thing"


def _garbage(here: Path, _good: Path | None) -> str:
    (here / "thing").write_bytes(bytes(range(256)) * 8)
    return "thing"


def _fifo(here: Path, _good: Path | None) -> str:
    os.mkfifo(here / "thing")
    return "thing"


def _fifo_within(here: Path, _good: Path | None) -> str:
    (here / "thing").mkdir()
    for name in ("recipe.yaml", "dataset.json", "manifest.json", "classes.txt", "rgb.png"):
        os.mkfifo(here / "thing" / name)
    return "thing"


def _socket(here: Path, _good: Path | None) -> str:
    before = Path.cwd()
    os.chdir(here)  # the address of a socket is short
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("thing")
    bound.close()
    os.chdir(before)
    return "thing"


def _dangling(here: Path, _good: Path | None) -> str:
    (here / "thing").symlink_to("nowhere")
    return "thing"


def _loop(here: Path, _good: Path | None) -> str:
    (here / "thing").symlink_to("other")
    (here / "other").symlink_to("thing")
    return "thing"


def _locked(here: Path, good: Path | None) -> str:
    locked = good if good is not None and good.exists() else here / "thing"
    locked.touch()
    locked.chmod(0)
    return str(locked.relative_to(here))


def _below_a_file(here: Path, _good: Path | None) -> str:
    (here / "thing").touch()
    return "thing/below"


@dataclass(frozen=True)
class Thing:
    """What a path can name.

    Attributes:
        make: puts it there.
        is_good: whether a command may take it: what was there, under another name.
        needs_rights_lost: root may read everything.
    """

    make: Make
    is_good: bool = False
    needs_rights_lost: bool = False


THINGS: dict[str, Thing] = {
    "missing": Thing(device("nowhere/at/all")),
    "empty file": Thing(_empty),
    "garbage": Thing(_garbage),
    "empty folder": Thing(_folder),
    "FIFO": Thing(_fifo),
    "folder of FIFOs": Thing(_fifo_within),
    "socket": Thing(_socket),
    "/dev/zero": Thing(device("/dev/zero")),
    "/dev/null": Thing(device("/dev/null")),
    "/dev/full": Thing(device("/dev/full")),
    "/dev/stdin": Thing(device("/dev/stdin")),
    "/proc/self/mem": Thing(device("/proc/self/mem")),
    "/dev/fd/99": Thing(device("/dev/fd/99")),
    "nothing": Thing(device(""), is_good=True),  # the working folder
    "dangling link": Thing(_dangling),
    "link loop": Thing(_loop),
    "name too long": Thing(device("n" * 300)),
    "path too long": Thing(device("p/" * 2500)),
    "below a file": Thing(_below_a_file),
    "locked": Thing(_locked, needs_rights_lost=True),
    "not UTF-8": Thing(named(os.fsdecode(b"odd\xff\xfe.x")), is_good=True),
    "newline": Thing(named("odd\nname\r"), is_good=True),
    "escape": Thing(named("odd\x1b[31m\x07\x9b name"), is_good=True),
    "dash": Thing(named("-odd"), is_good=True),
    "spaces": Thing(named(" odd  name "), is_good=True),
    "brackets": Thing(named("[bold]{odd}*?%s$HOME"), is_good=True),
}
